"""Groups of layers of one width, what widths cost them, and plans of a choice."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers, QuantPlan, without_nodes
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.groups import (
    FLOAT_BITS,
    REASON,
    LayerGroup,
    find_groups,
    group_params,
    starting_formats,
    with_widths,
)

QUERY, KEY, FC1 = "/attn/qkv/MatMul_part0", "/attn/qkv/MatMul_part1", "/mlp/fc1/MatMul"


def groups(layers: Layers, plan: QuantPlan, granularity: str) -> tuple[LayerGroup, ...]:
    return find_groups(layers, plan, granularity, with_edges=True)  # type: ignore[arg-type]


def test_modules_and_layers(layers: Layers, plan: QuantPlan) -> None:
    modules, members = groups(layers, plan, "module"), groups(layers, plan, "layer")
    assert [(group.name, group.linears, group.size) for group in modules] == [
        ("block0.attn", (QUERY, KEY), 6 * 4 + 6 * 5),
        ("block0.mlp", (FC1,), 7 * 3),
    ]
    assert [group.name for group in members] == ["block0.attn.query", "block0.attn.key", "block0.mlp.fc1"]
    assert sum(group.size for group in modules) == sum(group.size for group in members)


def test_layers_outside_the_blocks_are_groups_by_name_unless_they_are_edges(layers: Layers, plan: QuantPlan) -> None:
    linears = layers.blockmap.linears
    outside = (linears[0], replace(linears[1], role="linear"), replace(linears[2], role="head"))
    changed = replace(layers, blockmap=replace(layers.blockmap, linears=outside))
    assert [group.name for group in groups(changed, plan, "module")] == ["block0.attn", KEY, FC1]
    without = find_groups(changed, plan, "module", with_edges=False)
    assert [group.name for group in without] == ["block0.attn", KEY]


def test_a_shared_weight_makes_one_group(layers: Layers, plan: QuantPlan) -> None:
    query, key, fc1 = layers.blockmap.linears
    tied = replace(layers, blockmap=replace(layers.blockmap, linears=(query, replace(key, weight=query.weight), fc1)))
    found = groups(tied, plan, "layer")
    assert (found[0].linears, found[0].weights, found[0].size) == ((QUERY, KEY), (query.weight,), 24)


def test_layers_that_the_plan_leaves_float_are_no_groups(layers: Layers, plan: QuantPlan) -> None:
    assert [group.linears for group in groups(layers, without_nodes(plan, {FC1: "asked"}), "layer")] == [
        (QUERY,),
        (KEY,),
    ]


@pytest.mark.parametrize("widths", [(4, 6), (8, 2)])
def test_a_choice_becomes_formats(layers: Layers, plan: QuantPlan, widths: Sequence[int]) -> None:
    modules = groups(layers, plan, "module")
    chosen = with_widths(plan, modules, {group.name: width for group, width in zip(modules, widths, strict=True)})
    for group, width in zip(modules, widths, strict=True):
        for weight in group.weights:
            assert (chosen.decisions[weight].spec.bits, chosen.params(weight)) == (width, None)
        specs = {params.spec for params in group_params(layers, plan, group, width).values()}
        assert specs == {chosen.decisions[weight].spec for weight in group.weights}
        assert {spec.bits for spec in specs} == {width}
        # The choice keeps what the target asks of weights, or 8 bits would saturate in a model that is said not to.
        assert {spec.saturation_free for spec in specs} == {
            plan.decisions[weight].spec.saturation_free for weight in group.weights
        }
    activations = {name for name, decision in plan.decisions.items() if decision.site.kind == "activation"}
    assert all(chosen.params(name) is plan.params(name) for name in activations)


def test_a_group_can_stay_float(layers: Layers, plan: QuantPlan) -> None:
    modules = groups(layers, plan, "module")
    chosen = with_widths(plan, modules, {"block0.attn": FLOAT_BITS, "block0.mlp": 4})
    assert not {"x", "/attn/qkv/MatMul_part0.weight"} & chosen.decisions.keys()
    assert chosen.kept_float == {QUERY: REASON, KEY: REASON}


def test_other_readers_of_a_tensor_go_on(plan: QuantPlan) -> None:
    fitted = plan.with_weights({QUERY: np.ones((6, 4), np.float32)}).with_biases({KEY: np.ones(5, np.float32)})
    left = without_nodes(fitted, {QUERY: "asked"})
    assert left.decisions["x"].site.consumers == ((KEY, 0),)
    assert left.params("x") is plan.params("x")
    assert (set(left.weights), set(left.biases)) == (set(), {KEY})


def test_sums_of_a_choice() -> None:
    found = (LayerGroup(name="a", linears=(), weights=(), size=3), LayerGroup(name="b", linears=(), weights=(), size=5))
    sizes, errors = np.array([[6, 12], [10, 20]]), np.array([[1.0, 0.25], [2.0, 0.5]])
    costs = WidthCosts(groups=found, widths=(2, 4), sizes=sizes, errors=errors)
    assert (costs.size((1, 0)), costs.error((1, 0))) == (22, 2.25)
    assert costs.bits((1, 0)) == {"a": 4, "b": 2}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, "w8a8"),
        ({"average_bits": 4.2}, "w4a8"),
        ({"average_bits": 7.4, "bits": "w8a6"}, "w8a6"),
        ({"average_bits": 7.4, "bits": "w7a8"}, "w7a8"),
        ({"target_size": 75 * 3 / 8e6}, "w3a8"),
    ],
)
def test_the_fit_starts_near_the_budget(layers: Layers, options: dict[str, object], bits: str) -> None:
    """The problem has 24 + 30 + 21 = 75 weights."""
    assert starting_formats(QuantConfig(**options), layers).bits == bits  # type: ignore[arg-type]
