"""Groups' weights rounded on their own: what widths do to a layer's output, and plans to evaluate."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.numerics.affine import least_squares_params
from onnxvitq.precision import rounding as rounding_module
from onnxvitq.precision.groups import FLOAT_BITS, find_groups
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.rounding import GroupRounding, drawn_outputs


def rounding_of(
    layers: Layers, plan: QuantPlan, stats: Statistics, *, feedback: bool, granularity: str = "module"
) -> GroupRounding:
    groups = find_groups(layers, plan, granularity, with_edges=True)  # type: ignore[arg-type]
    network = PlannedNetwork(graph=gs.Graph(), layers=layers, plan=plan, statistics=stats)
    return GroupRounding(network, groups, feedback=feedback, threads=1)


@pytest.mark.parametrize("feedback", [False, True])
def test_errors_fall_by_four_a_bit_and_a_float_layer_has_none(
    layers: Layers, plan: QuantPlan, stats: Statistics, feedback: bool
) -> None:
    rounding = rounding_of(layers, plan, stats, feedback=feedback)
    for errors in rounding.relative_errors((3, 5, 7, FLOAT_BITS), 5):
        assert errors[1] == 1
        assert (errors[0], 1 / errors[2]) == pytest.approx((16, 16), rel=0.7)
        assert errors[3] == 0


@pytest.mark.parametrize("feedback", [False, True])
def test_a_rounded_group_is_put_on_a_plan(layers: Layers, plan: QuantPlan, stats: Statistics, feedback: bool) -> None:
    put = rounding_of(layers, plan, stats, feedback=feedback).rounded_plan(
        plan, {"block0.attn": 4, "block0.mlp": FLOAT_BITS}
    )
    query, key, fc1 = (one.name for one in layers.blockmap.linears)
    assert set(put.weights) == set(put.biases) == {query, key}
    for name in (query, key):
        weight = layers.weight(name)
        params = least_squares_params(weight, plan.decisions[f"{name}.weight"].spec.with_bits(4))
        codes = put.weights[name] / (params.scale if feedback else np.abs(weight).max(axis=0) / 7)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(codes).max() <= 7.001
        assert np.array_equal(put.biases[name], layers.bias(name)) == (not feedback)
    assert put.params(f"{fc1}.weight") is plan.params(f"{fc1}.weight")


def test_layers_rounded_together_are_those_rounded_alone(layers: Layers, plan: QuantPlan, stats: Statistics) -> None:
    together, alone = (rounding_of(layers, plan, stats, feedback=True, granularity="layer") for _ in range(2))
    choices = [{"block0.attn.query": 3, "block0.attn.key": 5}, {"block0.attn.query": 4, "block0.mlp.fc1": 3}]
    together.prepare(choices)
    for choice in choices:
        for group, width in choice.items():
            one = alone.rounded_plan(plan, {group: width})
            (name,) = one.weights
            assert np.array_equal(one.weights[name], together.rounded_plan(plan, choice).weights[name])
            assert np.array_equal(one.biases[name], together.rounded_plan(plan, choice).biases[name])


def test_a_few_outputs_tell_what_all_do(
    layers: Layers, plan: QuantPlan, stats: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = rounding_of(layers, plan, stats, feedback=False).relative_errors((3, 5), 5)
    monkeypatch.setattr(rounding_module, "OUTPUTS", 2)
    some = rounding_of(layers, plan, stats, feedback=False).relative_errors((3, 5), 5)
    assert (some != every).any()
    np.testing.assert_allclose(some, every, rtol=0.5)


def test_drawn_outputs_stand_for_the_sum() -> None:
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=200)
    errors[7] = errors.sum()  # half of all
    outputs, shares = drawn_outputs(errors, 40)
    assert len(outputs) <= 21
    assert shares[outputs == 7].item() == pytest.approx(20, abs=1)
    relative = rng.normal(16, 3, size=200)
    exact = (relative * errors).sum() / errors.sum()
    assert np.average(relative[outputs], weights=shares) == pytest.approx(exact, rel=0.05)


def test_few_outputs_are_all_drawn() -> None:
    outputs, shares = drawn_outputs(np.array([1.0, 3.0, 0.0]), 3)
    assert (outputs.tolist(), shares.tolist()) == ([0, 1, 2], [1, 3, 0])
    outputs, shares = drawn_outputs(np.zeros(5), 3)
    assert (outputs.tolist(), shares.tolist()) == ([0, 1, 2], [1, 1, 1])
