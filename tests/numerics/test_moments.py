import numpy as np
import pytest
from fitted_cases import moments_of

from onnxvitq.numerics import moments as module
from onnxvitq.numerics.moments import CHUNK, Moments, Sums, output_error


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


def case(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (N, 5), correlated and off zero, targets (N, 3), weights (N,) of 0 to 32."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, 5)) @ rng.standard_normal((5, 5)) + 3
    t = a @ rng.standard_normal((5, 3)) + rng.standard_normal((rows, 3)) - 2
    return read_only(a), read_only(t), read_only(rng.choice([0.0, 0.5, 1.0, 32.0], rows))


def assert_same(left: Moments, right: Moments) -> None:
    for name in ("gram", "cross", "mean_a", "mean_t", "t2", "mass"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-9, atol=1e-9)


def test_moments_worked() -> None:
    # Weights 1 and 4: the means are (13, 2) / 5 and -3 / 5, the raw sums [[37, 2], [2, 4]], (-11, 2) and 5.
    a, t = read_only(np.array([[1, 2], [3, 0]])), read_only(np.array([[1], [-1]]))
    moments = moments_of(a, t, read_only(np.array([1, 4])))
    assert moments.gram.tolist() == pytest.approx(np.array([[37 - 169 / 5, 2 - 26 / 5], [2 - 26 / 5, 4 - 4 / 5]]))
    assert moments.cross.tolist() == pytest.approx(np.array([[-11 + 39 / 5], [2 + 6 / 5]]))
    assert moments.mean_a.tolist() == pytest.approx([13 / 5, 2 / 5])
    assert (moments.mean_t[0], moments.t2[0], moments.mass, moments.rows) == pytest.approx((-3 / 5, 5 - 9 / 5, 5, 2))


@pytest.mark.parametrize("block", [1, 2, 5])
def test_batches_blocks_and_merges_are_the_whole(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    a, t, w = case(CHUNK + 100)
    whole = moments_of(a, t, w)
    monkeypatch.setattr(module, "BLOCK", block)
    sums, other, nothing = Sums(5, 3), Sums(5, 3), Sums(5, 3)
    sums.add(a[:700], t[:700], w[:700])
    sums.add(a[700:900], t[700:900], w[700:900])
    other.add(a[900:], t[900:], w[900:])
    sums.merge(other)
    sums.merge(nothing)
    parts = sums.about_means()
    assert_same(whole, parts)
    assert (parts.gram == parts.gram.T).all()
    with pytest.raises(ValueError, match="read-only"):
        parts.gram[0, 0] = 0


def test_a_weight_is_a_repetition() -> None:
    a, t, _ = case()
    twice = moments_of(np.concatenate([a, a]), np.concatenate([t, t]), np.ones(120, np.float32))
    assert_same(twice, moments_of(a, t, np.full(60, 2, np.float32)))


def test_moments_are_about_the_weighted_means() -> None:
    a, t, w = case()
    about = moments_of(a, t, w)
    mean_a, mean_t = np.average(a, axis=0, weights=w), np.average(t, axis=0, weights=w)
    np.testing.assert_allclose(about.mean_a, mean_a, rtol=1e-6)  # numpy averages in float32 here
    np.testing.assert_allclose(about.gram, (w[:, None] * (a - mean_a)).T @ (a - mean_a), rtol=1e-4)
    np.testing.assert_allclose(about.cross, (w[:, None] * (a - mean_a)).T @ (t - mean_t), rtol=1e-4)


def test_there_is_no_noise_where_an_input_never_varies() -> None:
    a, t, w = case()
    a = np.concatenate([a, np.full((60, 1), 1000.1, np.float32), np.zeros((60, 1), np.float32)], axis=1)
    about = moments_of(a, t, w)
    assert not about.gram[5:].any()
    assert not about.gram[:, 5:].any()
    assert not about.cross[5:].any()
    assert about.gram.diagonal()[:5].all()


@pytest.mark.parametrize("noise", [1.0, 1e-3], ids=["0 dB", "60 dB"])
def test_output_error_is_the_direct_sum(noise: float) -> None:
    a, _, w = case(5000)
    rng = np.random.default_rng(1)
    weight, bias = read_only(rng.standard_normal((5, 3))), read_only(rng.standard_normal(3))
    t = read_only(a.astype(np.float64) @ weight + bias + noise * rng.standard_normal((5000, 3)))
    direct = (w[:, None] * (a.astype(np.float64) @ weight + bias - t) ** 2).sum(axis=0)
    moments = moments_of(a, t, w)
    found = output_error(moments, weight, bias)
    assert found.dtype == np.float64
    # The expanded square loses digits in proportion to what cancels, the targets' own square.
    cancels = (w @ t.astype(np.float64) ** 2).max()
    np.testing.assert_allclose(found, direct, rtol=1e-12, atol=1e-14 * cancels)
    both = output_error(moments, weight, np.stack([bias, bias + 1]))
    assert np.array_equal(both, [found, output_error(moments, weight, bias + 1)])
    assert (both[0] < both[1]).all()


def test_output_error_of_the_layer_itself_is_nothing() -> None:
    a, _, w = case()
    weight = np.eye(5, 3, dtype=np.float32)
    bias = np.full(3, 4, np.float32)
    moments = moments_of(a, a[:, :3] + 4, w)
    assert (output_error(moments, weight, bias) <= 1e-12 * moments.t2).all()  # the sum a + 4 was rounded to float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((60, 4), np.float32)}, "expected rows"),
        ({"t": np.zeros((59, 3), np.float32)}, "expected rows"),
        ({"w": np.zeros((60, 1), np.float32)}, "expected rows"),
        ({"w": np.full(60, -1, np.float32)}, "negative"),
        ({"a": np.full((60, 5), np.nan, np.float32)}, "not finite"),
        ({"t": np.full((60, 3), np.nan, np.float32)}, "not finite"),
        ({"w": np.full(60, np.nan, np.float32)}, "not finite"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    a, t, w = case()
    with pytest.raises(ValueError, match=message):
        Sums(5, 3).add(**{"a": a, "t": t, "w": w} | change)


def test_shapes_and_emptiness_are_checked() -> None:
    with pytest.raises(ValueError, match="no row has weight"):
        Sums(5, 3).about_means()
    with pytest.raises(ValueError, match="different layers"):
        Sums(5, 3).merge(Sums(5, 2))
    with pytest.raises(ValueError, match="expected a layer"):
        output_error(moments_of(*case()), np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="got gram"):
        Moments(gram=np.eye(3), cross=np.eye(2), mean_a=np.ones(2), mean_t=np.ones(2), t2=np.ones(2), mass=1.0, rows=3)
