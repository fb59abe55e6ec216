"""Which attentions divide late: those whose own result comes nearer, by a margin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxvitq.core.layers import Attention, BlockMap, Site
from onnxvitq.core.plan import Layers, QuantPlan, SiteDecision
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.initial_plan import ACTIVATION
from onnxvitq.fit.steps.late_softmax.choose import WORTH_DB, attentions_to_divide_late
from onnxvitq.numerics.affine import fake_quantize, params_from_range

PLAIN = Attention(
    name="attention",
    block=0,
    query="q",
    key="k",
    probs="p",
    value="v",
    scores_node="scores",
    softmax_node="softmax",
    context_node="context",
    probs_first=True,
    heads=2,
    tokens=64,
    width=8,
    direct=True,
)


def choose(attention: Attention, probs: np.ndarray, *, planned: bool = True) -> dict[str, float]:
    value = np.random.default_rng(1).normal(size=(2, 2, probs.shape[-1], 8)).astype(np.float32)
    blockmap = BlockMap(blocks=(), attentions=(attention,), linears=(), norms=(), unmatched=())
    sites = {
        name: SiteDecision(site=Site(name=name, kind="activation", role=name, consumers=()), spec=ACTIVATION)
        for name in (("p", "v") if planned else ())
    }
    stats = Statistics(lefts={"p": probs}, rights={"v": value})
    layers = Layers(blockmap=blockmap, constants={})
    return attentions_to_divide_late(layers, QuantPlan(decisions=sites), stats)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def uneven(seed: int = 0) -> np.ndarray:
    """Rows of softmax outputs, one of which is nearly certain: it sets the range, and the even rows get few codes."""
    scores = np.random.default_rng(seed).normal(size=(2, 2, 16, 64))
    scores[0, 0, 0, 0] = 20.0
    return softmax(scores)


@pytest.mark.parametrize("seed", range(5))
def test_uneven_rows_are_worth_it_and_the_gain_is_what_it_says(seed: int) -> None:
    probs = uneven(seed)
    gain = choose(PLAIN, probs)["attention"]
    assert gain > 10
    value = np.random.default_rng(1).normal(size=(2, 2, 64, 8)).astype(np.float32)
    powers = fake_quantize(probs / probs.max(axis=-1, keepdims=True), params_from_range(0, 1, ACTIVATION))
    plain = fake_quantize(probs, params_from_range(0, float(probs.max()), ACTIVATION))
    errors = [
        np.mean((got - probs @ value) ** 2) for got in (plain @ value, powers @ value / powers.sum(-1, keepdims=True))
    ]
    assert gain == pytest.approx(10 * np.log10(errors[0] / errors[1]), abs=0.01)


def test_rows_that_are_certain_gain_nothing() -> None:
    """One position has all the weight in every row: the codes of the quotients are as good as those of the powers."""
    certain = np.zeros((2, 2, 16, 64), np.float32)
    certain[..., 3] = 1.0
    assert choose(PLAIN, certain) == {}


def test_a_small_gain_is_not_worth_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = uneven()
    gain = choose(PLAIN, probs)["attention"]
    assert gain >= WORTH_DB
    monkeypatch.setattr("onnxvitq.fit.steps.late_softmax.choose.WORTH_DB", gain + 0.1)
    assert choose(PLAIN, probs) == {}


@pytest.mark.parametrize(
    "changes", [{"direct": False}, {"probs_first": False}], ids=["something lies between", "value first"]
)
def test_only_plain_attentions(changes: dict[str, Any]) -> None:
    assert choose(replace(PLAIN, **changes), uneven()) == {}


def test_an_attention_that_stays_float_is_left_alone() -> None:
    assert choose(PLAIN, uneven(), planned=False) == {}
