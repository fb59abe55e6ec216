"""Branches of low rank: they gain where there is something to gain, stay within their budget, and do no harm."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fitted_cases import Case, correlated, linear_of

from onnxvitq.core.plan import QuantPlan
from onnxvitq.fit.step import LayerGain
from onnxvitq.fit.steps.low_rank.branches import Branches, fit_branches
from onnxvitq.fit.steps.low_rank.fit import quantized_linear
from onnxvitq.fit.steps.low_rank.ranks import ADDED, SMALL, FittedBranches, best_ranks, weight_bytes
from onnxvitq.numerics.affine import params_from_range, params_from_weight
from onnxvitq.numerics.fit import times
from onnxvitq.targets.ort_cpu.branches import branch_names

TransformerCase = Callable[..., Case]


def fitted(case: Case, options: Branches) -> tuple[QuantPlan, LayerGain]:
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    return fit_branches(case.graph, case.layers, case.plan, case.feeds, folder, options)


def narrow(case: Case, bits: int) -> Case:
    """Activations of few bits, over the same ranges."""
    decisions = dict(case.plan.decisions)
    for name, decision in decisions.items():
        if decision.site.kind == "activation":
            spec = decision.spec.with_bits(bits)
            decisions[name] = replace(decision, spec=spec, params=params_from_range(*case.stats.ranges[name], spec))
    return replace(case, plan=replace(case.plan, decisions=decisions))


def layer_error(case: Case, plan: QuantPlan, name: str, samples: int = 16) -> float:
    """Of the first layer's output on fresh samples."""
    linear = linear_of(case, name)
    inputs = np.concatenate([feed["tokens"] for feed in correlated(77, samples)])
    inputs = (inputs - inputs.mean(-1, keepdims=True)) / inputs.std(-1, keepdims=True)  # as the norm does
    gamma, beta = (case.graph.tensors()[f"b0_norm1_{part}"].values for part in "gb")
    inputs = gamma * inputs + beta
    wanted = times(inputs, case.layers.weight(name)) + case.layers.bias(name)
    return float(((quantized_linear(case.layers, plan, linear)(inputs) - wanted) ** 2).sum())


def test_an_error_of_low_rank_is_taken_back(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=48, bits=8)
    rng = np.random.default_rng(0)
    weight = case.layers.weight("b0_fc1")
    spoiled = weight + 0.3 * (rng.standard_normal((32, 2)) @ rng.standard_normal((2, 64))).astype(np.float32)
    bad = replace(case, plan=case.plan.with_weights({"b0_fc1": spoiled}))
    params = params_from_weight(spoiled, case.plan.decisions["b0_fc1_W"].spec)
    bad = replace(bad, plan=bad.plan.with_params({"b0_fc1_W": params}))
    plan, gain = fitted(bad, Branches(rank=2, threads=1))
    assert gain.kept > 0
    good, before, after = (layer_error(case, one, "b0_fc1") for one in (case.plan, bad.plan, plan))
    assert before > 300 * good
    assert after < before / 10  # its codes have eight bits, and its part is large


@pytest.mark.parametrize("bits", [3, 4])
def test_branches_gain_on_fresh_samples(transformer_case: TransformerCase, bits: int) -> None:
    case = narrow(transformer_case(samples=64, bits=bits), bits)
    plan, gain = fitted(case, Branches(rank=6, threads=1))
    assert gain.kept > 0
    assert gain.before is not None
    assert gain.after is not None
    assert gain.after > gain.before
    assert layer_error(case, plan, "b0_q") < layer_error(case, case.plan, "b0_q")


def test_the_budget_is_kept(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=48, bits=4), 4)
    budget = 0.5
    plan, _ = fitted(case, Branches(budget=budget, latency=1e9, threads=1))
    names = branch_names(plan, case.layers.blockmap)
    factors = {name: plan.branches[linear].a.size for linear, (name, _) in names.items()}
    spent = sum(factors.values()) + sum(branch.b.size for branch in plan.branches.values())
    assert 0 < spent <= budget * weight_bytes(case.layers, case.plan)
    assert spent < sum(branch.nbytes for branch in plan.branches.values())


def group(name: str, gains: list[float], outputs: int = 100, rows: float = 10.0) -> FittedBranches:
    """That may have a branch: a stand-in for one is enough."""
    branches = {name: None} if gains else {}
    return FittedBranches(
        tensor=name,
        gains=np.array(gains),
        inputs=1000,
        outputs=outputs,
        rows=rows,
        branches=branches,  # type: ignore[arg-type]
    )


def spent(found: list[FittedBranches], ranks: dict[str, int]) -> float:
    """Time of the branches over that of the products."""
    used = [one for one in found if ranks[one.tensor]]
    branches = sum(
        one.rows * (ADDED * one.outputs + SMALL * ranks[one.tensor] * (one.inputs + one.outputs)) for one in used
    )
    return branches / sum(one.rows * one.inputs * one.outputs for one in found)


def test_the_layers_that_gain_most_for_their_time_get_a_branch() -> None:
    found = [
        group("wide", [5.0, 4.0], outputs=400),
        group("narrow", [4.0, 3.0]),
        group("useless", [0.1]),
        group("none", []),
    ]
    assert best_ranks(found, 1e9, 1e9) == {"wide": 2, "narrow": 2, "useless": 1, "none": 0}
    tight = best_ranks(found, 1e9, 0.045)  # of the time that the wide layer alone would need, less than half
    assert tight == {"wide": 0, "narrow": 2, "useless": 0, "none": 0}
    assert 0 < spent(found, tight) <= 0.045
    assert best_ranks(found, 1e9, 0.0) == dict.fromkeys(tight, 0)


def test_bytes_and_time_both_limit_ranks() -> None:
    found = [group("one", [3.0] * 20), group("other", [2.0] * 20, rows=20.0)]
    for size, latency in ((1e9, 0.5), (1e9, 0.3), (5500.0, 1e9), (20000.0, 0.4)):
        ranks = best_ranks(found, size, latency)
        assert sum(ranks.values()) > 0
        assert spent(found, ranks) <= latency
        assert sum(1104 * rank for rank in ranks.values()) <= size


def test_one_layer_with_all_the_rest_beats_many_with_nothing() -> None:
    found = [group(name, [1.0, 1.0, 1.0, 1.0]) for name in ("a", "b", "c", "d")]
    each = ADDED * 100 / (4 * 1000 * 100)  # of having a branch at all
    ranks = best_ranks(found, 1e9, 2.1 * each)
    assert sum(rank > 0 for rank in ranks.values()) == 1
    assert max(ranks.values()) == 4


def test_branches_stay_within_their_time(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=48, bits=3), 3)
    anything, some = (fitted(case, Branches(budget=1.0, latency=time, threads=1))[0] for time in (1e9, 1.0))
    assert 0 < len(some.branches) < len(anything.branches)


def test_nothing_is_added_to_a_layer_that_is_exact(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=8, bits=8)
    wide = replace(case, plan=replace(case.plan, decisions={}))
    plan, gain = fitted(wide, Branches(rank=4, threads=1))
    assert (dict(plan.branches), gain.layers) == ({}, 0)


def test_layers_that_read_one_tensor_share_a(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=48, bits=4), 4)
    plan, _ = fitted(case, Branches(rank=4, threads=1))
    names = branch_names(plan, case.layers.blockmap)
    assert names["b0_q"][0] == names["b0_k"][0] == names["b0_v"][0]
    assert names["b0_q"][0] != names["b0_fc1"][0]
    assert case.sqnr(plan, correlated(9, 4)) != case.sqnr(case.plan, correlated(9, 4))  # and it is written


def test_a_branch_that_gains_less_than_it_is_worth_is_left_out(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=48, bits=4), 4)
    assert not fitted(case, Branches(rank=4, threads=1, worth_db=30.0))[0].branches


def test_too_few_rows_fit_nothing(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=2, bits=4), 4)
    assert not fitted(case, Branches(rank=4, threads=1))[0].branches
