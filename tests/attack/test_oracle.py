import numpy as np
import pytest
from oracle import assess, outputs_of, plain_quantization, sqnr
from recipes import MAGNITUDES, Recipe
from small_transformers import build, samples


def test_sqnr_worked() -> None:
    exact = np.array([3.0, -4.0], np.float32)
    assert sqnr(exact, exact) == np.inf
    assert sqnr(exact, exact * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert sqnr(exact * np.float32(1e-38), exact * np.float32(1.1e-38)) == pytest.approx(20.0, abs=0.1)
    assert sqnr(exact * np.float32(1e37), exact * np.float32(1.1e37)) == pytest.approx(20.0, abs=1e-3)
    assert sqnr(exact, np.zeros(2, np.float32)) == 0.0
    assert np.isnan(sqnr(exact, np.array([np.nan, -4.0], np.float32)))
    assert sqnr(np.zeros(2, np.float32), exact) == -np.inf
    assert np.isnan(sqnr(exact, exact[:1]))
    masked = np.array([3.0, -np.inf], np.float32)
    assert sqnr(masked, masked) == np.inf
    assert np.isnan(sqnr(masked, exact))


def floats(*noise: float) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    exact, error = rng.normal(size=(2, 64))
    return [[(exact + amount * error).astype(np.float32) for amount in noise]]


@pytest.mark.parametrize(("noise", "bad"), [(0.01, False), (0.0105, False), (0.012, True), (1.0, True), (np.nan, True)])
def test_an_output_more_than_a_decibel_worse_is_bad(noise: float, bad: bool) -> None:
    found = assess(["a", "b"], floats(0, 0), floats(0.01, noise), floats(0.01, 0.01))
    assert [one.bad for one in found] == [False, bad]


def test_integers_are_bad_where_they_differ_more_often() -> None:
    exact = [[np.arange(100)]]
    plain = [[np.where(np.arange(100) < 10, 0, np.arange(100))]]
    worse = [[np.where(np.arange(100) < 15, 0, np.arange(100))]]
    assert not assess(["label"], exact, plain, plain)[0].bad
    assert assess(["label"], exact, worse, plain)[0].bad
    assert assess(["label"], exact, [[exact[0][0].astype(np.int32)]], plain)[0].bad


def test_plain_quantization_loses_something_and_not_all() -> None:
    recipe = Recipe(outputs=("logits", "tokens"))
    model, feeds = build(recipe), samples(recipe, 1, 4)
    exact, plain = outputs_of(model, feeds), outputs_of(plain_quantization(model, feeds), feeds)
    for one in assess(["logits", "tokens"], exact, plain, plain):
        assert 20 < one.got < 50


@pytest.mark.parametrize("attention", ["com.microsoft Attention", "com.microsoft MultiHeadAttention", "Attention"])
def test_fused_attention_is_the_same_function_in_parts(attention: str) -> None:
    recipe = Recipe(opset=23, attention=attention, outputs=("logits", "tokens"))
    feeds = samples(recipe, 1, 2)
    fused, parts = (outputs_of(build(recipe, fused=fused), feeds) for fused in (True, False))
    for one, two in zip(fused, parts, strict=True):
        for a, b in zip(one, two, strict=True):
            assert sqnr(a, b) > 100


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_the_float_model_is_finite_and_itself_precise(magnitude: str) -> None:
    """What float32 alone loses, by summing in another order, is far less than 8 bits do."""
    recipe = Recipe(activation="relu", ffn="gated", outputs=("logits", "tokens", "hidden"), magnitude=magnitude)
    model, feeds = build(recipe), samples(recipe, 1, 2)
    for one, two in zip(outputs_of(model, feeds), outputs_of(model, feeds, optimised=False), strict=True):
        for a, b in zip(one, two, strict=True):
            assert np.isfinite(a).all()
            assert sqnr(a, b) > 60
