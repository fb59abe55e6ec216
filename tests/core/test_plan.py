import io
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from onnxvitq.core.errors import PlanError
from onnxvitq.core.formats import QParams, activation_format, weight_format
from onnxvitq.core.layers import BlockMap, Linear, Site
from onnxvitq.core.plan import PLAN_VERSION, Branch, Layers, QuantPlan, SiteDecision, plan_from_bytes, plan_to_bytes

ACTIVATION = activation_format(8)
WEIGHT = weight_format(7)


def site(name: str, kind: str) -> Site:
    return Site(name=name, kind=kind, role=f"block0.{name}", consumers=(("a/MatMul", 0), ("b", 1)))  # type: ignore[arg-type]


@pytest.fixture
def plan() -> QuantPlan:
    """An activation and a weight with parameters, an activation without; biases, new weights; a node kept float."""
    return QuantPlan(
        decisions={
            "x": SiteDecision(
                site=site("x", "activation"),
                spec=ACTIVATION,
                params=QParams(spec=ACTIVATION, scale=np.array(0.1, np.float32), zero_point=np.array(3)),
            ),
            "later": SiteDecision(site=site("later", "activation"), spec=ACTIVATION),
            "größe/w": SiteDecision(
                site=site("größe/w", "weight"),
                spec=WEIGHT,
                params=QParams(spec=WEIGHT, scale=np.array([0.1, 0.2, 1e-12]), zero_point=np.zeros(3, int)),
            ),
        },
        biases={"a/MatMul": np.array([1.5, -2.5, 1e-9], np.float32), "b": np.zeros(1, np.float32)},
        kept_float={"c": "excluded by '*.c'"},
        weights={
            "b": np.array([[0.5, -2.0, 0.25], [1e-9, 3.0, -7.5]], np.float32),
            "größe": np.ones((1, 1), np.float32),
        },
        dynamic=frozenset({"x", "größe/x"}),
        branches={"b": branch(), "größe": branch()},
    )


def branch() -> Branch:
    """Of rank two, three inputs and one output."""
    return Branch(
        a=np.array([[1, 2], [3, 4], [5, -6]], np.float32),
        b=np.array([[7], [-8]], np.float32),
        a_params=QParams(spec=WEIGHT, scale=np.array([0.5, 0.25]), zero_point=np.zeros(2, int)),
        b_params=QParams(spec=WEIGHT, scale=np.array([0.5]), zero_point=np.zeros(1, int)),
        inner=QParams(spec=ACTIVATION, scale=np.array(0.5, np.float32), zero_point=np.array(9)),
    )


def same_params(one: QParams | None, other: QParams | None) -> bool:
    if one is None or other is None:
        return one is other
    arrays = ((one.scale, other.scale), (one.zero_point, other.zero_point))
    return one.spec == other.spec and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def archive(header: object, **arrays: Any) -> bytes:
    """A file of the plan's outer form with any header."""
    file = io.BytesIO()
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return file.getvalue()


def test_round_trip(plan: QuantPlan) -> None:
    again = plan_from_bytes(plan_to_bytes(plan))
    assert list(again.decisions) == list(plan.decisions)
    for name, decision in plan.decisions.items():
        assert again.decisions[name].site == decision.site
        assert again.decisions[name].spec == decision.spec
        assert same_params(again.params(name), decision.params)
    assert list(again.biases) == list(plan.biases)
    for name, bias in plan.biases.items():
        assert again.biases[name].dtype == np.float32
        assert np.array_equal(again.biases[name], bias)
    assert (again.kept_float, again.dynamic) == (plan.kept_float, plan.dynamic)
    assert list(again.weights) == list(plan.weights)
    for name, weight in plan.weights.items():
        assert again.weights[name].dtype == np.float32
        assert np.array_equal(again.weights[name], weight)
    assert list(again.branches) == list(plan.branches)
    for name, one in plan.branches.items():
        other = again.branches[name]
        assert np.array_equal(other.a, one.a)
        assert np.array_equal(other.b, one.b)
        for part in ("a_params", "b_params", "inner"):
            assert same_params(getattr(other, part), getattr(one, part))


def test_the_same_plan_gives_the_same_bytes(plan: QuantPlan) -> None:
    data = plan_to_bytes(plan)
    assert plan_to_bytes(plan) == data
    assert plan_to_bytes(plan_from_bytes(data)) == data


@pytest.mark.parametrize("change", ["scale", "zero_point", "bias", "weight", "reason", "consumer", "branch", "dynamic"])
def test_another_plan_gives_other_bytes(plan: QuantPlan, change: str) -> None:
    decision = plan.decisions["x"]
    assert decision.params is not None
    others = {
        "scale": plan.with_params({"x": replace(decision.params, scale=np.array(0.11, np.float32))}),
        "zero_point": plan.with_params({"x": replace(decision.params, zero_point=np.array(4))}),
        "bias": plan.with_biases({"b": np.ones(1, np.float32)}),
        "weight": plan.with_weights({"b": np.ones((2, 3), np.float32)}),
        "reason": replace(plan, kept_float={"c": "another reason"}),
        "branch": plan.with_branches({"b": replace(plan.branches["b"], a=2 * plan.branches["b"].a)}),
        "dynamic": replace(plan, dynamic=frozenset({"x"})),
        "consumer": replace(
            plan,
            decisions={**plan.decisions, "x": replace(decision, site=replace(decision.site, consumers=(("b", 1),)))},
        ),
    }
    assert plan_to_bytes(others[change]) != plan_to_bytes(plan)


def test_an_empty_plan_round_trips() -> None:
    again = plan_from_bytes(plan_to_bytes(QuantPlan()))
    assert (again.decisions, again.biases, again.weights, again.kept_float, again.branches) == ({}, {}, {}, {}, {})


@pytest.mark.parametrize("version", [PLAN_VERSION + 1, 1, 0, "1", None])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(PlanError, match=f"expected version {PLAN_VERSION}, got {version}"):
        plan_from_bytes(archive({"version": version, "decisions": [], "biases": [], "kept_float": {}}))


def numpy_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


EMPTY = {
    "version": PLAN_VERSION,
    "decisions": [],
    "biases": [],
    "weights": [],
    "kept_float": {},
    "dynamic": [],
    "per_token": [],
    "branches": [],
}
BROKEN_SPEC = {"bits": 99, "signed": True, "symmetric": True, "axis": None}
X_SITE = {"name": "x", "kind": "activation", "role": "x", "consumers": []}
X = {"site": X_SITE, "spec": {"bits": 8, "signed": False, "symmetric": False, "axis": None}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a plan",
        b"PK\x03\x04" + bytes(60),
        numpy_array(),
        archive([]),
        archive({}),
        archive({"version": PLAN_VERSION}),
        archive({"version": PLAN_VERSION, "decisions": [{}], "biases": [], "kept_float": {}}),
        archive(
            {"version": PLAN_VERSION, "decisions": [], "biases": ["b"], "weights": [], "kept_float": {}, "branches": []}
        ),
        archive({"version": PLAN_VERSION, "decisions": [], "biases": [], "weights": ["b"], "kept_float": {}}),
        archive({"version": PLAN_VERSION, "decisions": [], "biases": [], "kept_float": {}}),
        archive({**EMPTY, "decisions": [{**X, "spec": BROKEN_SPEC}]}),
        archive(
            {**EMPTY, "decisions": [X]},
            scale0=np.array(-1, np.float32),
            zero0=np.array(0),
        ),
    ],
    ids=[
        "empty",
        "text",
        "zip",
        "npy",
        "list",
        "no-version",
        "no-decisions",
        "no-site",
        "no-bias",
        "no-weight",
        "no-weights",
        "bits",
        "scale",
    ],
)
def test_bytes_that_are_no_plan(data: bytes) -> None:
    with pytest.raises(PlanError, match="not a plan that onnxvitq wrote"):
        plan_from_bytes(data)


def test_a_plan_cut_short_is_refused(plan: QuantPlan) -> None:
    data = plan_to_bytes(plan)
    for length in range(0, len(data), 37):
        with pytest.raises(PlanError):
            plan_from_bytes(data[:length])


def test_a_damaged_plan_is_refused_or_read_right(plan: QuantPlan) -> None:
    data = plan_to_bytes(plan)
    refused = 0
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        try:
            again = plan_from_bytes(bytes(damaged))
        except PlanError:
            refused += 1
        else:
            assert plan_to_bytes(again) == data  # a date, or another byte that means nothing
    assert refused > len(data) / 7 / 2


def test_records_are_frozen_and_arrays_read_only(plan: QuantPlan) -> None:
    for some in (plan, plan_from_bytes(plan_to_bytes(plan))):
        with pytest.raises(FrozenInstanceError):
            some.biases = {}  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            some.decisions["x"].params = None  # type: ignore[misc]
        params = some.params("größe/w")
        assert params is not None
        for array in (params.scale, params.zero_point, some.biases["b"], some.weights["b"]):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_the_callers_bias_and_weight_are_copied() -> None:
    bias, weight = np.ones(2, np.float32), np.ones((1, 2), np.float32)
    plan = QuantPlan().with_biases({"a": bias}).with_weights({"a": weight})
    bias[0] = weight[0, 0] = 7
    assert plan.biases["a"].tolist() == [1.0, 1.0]
    assert plan.weights["a"].tolist() == [[1.0, 1.0]]


def test_params_of_a_tensor(plan: QuantPlan) -> None:
    found = plan.params("x")
    assert found is not None
    assert found.zero_point == 3
    assert plan.params("later") is None  # not fitted yet
    assert plan.params("elsewhere") is None  # not planned


def test_with_params_replaces_these_and_keeps_the_rest(plan: QuantPlan) -> None:
    fitted = QParams(spec=ACTIVATION, scale=np.array(0.5, np.float32), zero_point=np.array(0))
    after = plan.with_params({"later": fitted})
    assert after.params("later") is fitted
    assert after.decisions["later"].site == plan.decisions["later"].site
    assert list(after.decisions) == list(plan.decisions)
    assert after.decisions["x"] is plan.decisions["x"]
    assert after.kept_float == plan.kept_float
    assert {name: bias.tolist() for name, bias in after.biases.items()} == {
        name: bias.tolist() for name, bias in plan.biases.items()
    }
    assert plan.params("later") is None
    with pytest.raises(KeyError, match="elsewhere"):
        plan.with_params({"elsewhere": fitted})


def test_with_biases_replaces_these_and_keeps_the_rest(plan: QuantPlan) -> None:
    after = plan.with_biases({"b": np.array([4.0], np.float32), "new": np.array([5.0], np.float32)})
    assert {name: bias.tolist() for name, bias in after.biases.items()} == {
        "a/MatMul": plan.biases["a/MatMul"].tolist(),
        "b": [4.0],
        "new": [5.0],
    }
    assert after.decisions is plan.decisions
    assert plan.biases["b"].tolist() == [0.0]


def test_with_weights_replaces_these_and_keeps_the_rest(plan: QuantPlan) -> None:
    after = plan.with_weights({"b": np.array([[4.0]]), "new": np.array([[5.0]], np.float32)})
    assert list(after.weights) == ["b", "größe", "new"]
    assert after.weights["b"].tolist() == [[4.0]]
    assert after.weights["b"].dtype == np.float32
    assert after.weights["größe"].tolist() == [[1.0]]
    assert after.decisions is plan.decisions
    assert after.biases.keys() == plan.biases.keys()
    assert plan.weights["b"].shape == (2, 3)


def test_with_branches_replaces_these_and_keeps_the_rest(plan: QuantPlan) -> None:
    after = plan.with_branches({"b": replace(plan.branches["b"], b=np.ones((2, 5), np.float32))})
    assert list(after.branches) == ["b", "größe"]
    assert after.branches["b"].b.shape == (2, 5)
    assert plan.branches["b"].b.shape == (2, 1)
    assert after.branches["b"].rank == 2
    assert after.weights.keys() == plan.weights.keys()


@pytest.mark.parametrize(("a", "b"), [((3, 2), (1, 4)), ((3, 0), (0, 4)), ((3,), (1, 4))])
def test_factors_that_do_not_fit_are_refused(plan: QuantPlan, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected factors"):
        replace(plan.branches["b"], a=np.zeros(a, np.float32), b=np.zeros(b, np.float32))


def linear(name: str, bias: str) -> Linear:
    return Linear(
        name=name,
        role=name,
        kind="linear",
        input="x",
        weight="w",
        bias=bias,
        bias_node="",
        output="y",
        in_features=2,
        out_features=3,
    )


def test_problem_finds_weights_and_biases_by_the_linears_name() -> None:
    linears = (linear("with", "b"), linear("without", ""))
    blockmap = BlockMap(blocks=(), attentions=(), linears=linears, norms=(), unmatched=())
    constants = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([[1, 2, 3]], np.float32)}
    layers = Layers(blockmap=blockmap, constants=constants)
    assert layers.weight("with") is constants["w"]
    assert layers.bias("with").tolist() == [1.0, 2.0, 3.0]  # (1, O) in the graph
    assert layers.bias("without").tolist() == [0.0, 0.0, 0.0]
    assert layers.bias("without").dtype == np.float32


def test_a_plan_of_a_plan_shares_what_nobody_can_change() -> None:
    weight = np.ones((2, 3), np.float32)
    first = QuantPlan().with_weights({"fc": weight})
    assert first.weights["fc"] is not weight
    assert first.with_biases({"fc": np.zeros(3, np.float32)}).weights["fc"] is first.weights["fc"]
    view = weight[:]
    view.setflags(write=False)  # its values change with those of the array that it looks at
    assert not np.shares_memory(QuantPlan().with_weights({"fc": view}).weights["fc"], weight)
