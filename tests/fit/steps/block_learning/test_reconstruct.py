"""Blocks learned: better on their own objective than what they started from, kept only where that holds, and again the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fitted_cases import Case, correlated

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.plan import QuantPlan, plan_to_bytes
from onnxvitq.fit.steps.block_learning import available
from onnxvitq.fit.steps.block_learning import training as training_module
from onnxvitq.fit.steps.block_learning.available import require_torch
from onnxvitq.fit.steps.block_learning.block import Learned, QuantizedBlock
from onnxvitq.fit.steps.block_learning.checkpoint import BlockOutcome, remove_checkpoints
from onnxvitq.fit.steps.block_learning.network import cut
from onnxvitq.fit.steps.block_learning.rank_search import RankSearch, search_ranks
from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
from onnxvitq.fit.steps.block_learning.samples import BlockSamples
from onnxvitq.fit.steps.block_learning.training import Reconstruction, Training
from onnxvitq.fit.steps.low_rank.branches import Branches, fit_branches
from onnxvitq.numerics.affine import params_from_range

TransformerCase = Callable[..., Case]
QUICK = Reconstruction(iterations=30, batch=8, mixtures=0, threads=1)


def narrow(case: Case, bits: int) -> Case:
    """Activations of few bits over the same ranges, which a code cannot leave."""
    decisions = dict(case.plan.decisions)
    for name, decision in decisions.items():
        if decision.site.kind == "activation" and name in case.stats.ranges:
            spec = decision.spec.with_bits(bits)
            decisions[name] = replace(decision, spec=spec, params=params_from_range(*case.stats.ranges[name], spec))
    return replace(case, plan=replace(case.plan, decisions=decisions))


def learned(case: Case, options: Reconstruction, name: str = "scratch") -> tuple[QuantPlan, tuple[BlockOutcome, ...]]:
    return reconstruct(case.graph, case.layers, case.plan, case.feeds, case.folder / name, options)


def with_branches(case: Case, rank: int) -> Case:
    (case.folder / "branches").mkdir()
    options = Branches(rank=rank, threads=1)
    plan, _ = fit_branches(case.graph, case.layers, case.plan, case.feeds, case.folder / "branches", options)
    return replace(case, plan=plan)


@pytest.mark.parametrize("attention", ["float", "int8"])
def test_every_block_gains_and_so_does_the_model_on_fresh_samples(
    transformer_case: TransformerCase, attention: str
) -> None:
    case = narrow(transformer_case(32, bits=3, attention=attention), 4)
    plan, outcomes = learned(case, QUICK)
    assert [outcome.block for outcome in outcomes] == [0, 1, 2]
    assert all(one.kept and one.after > one.before + 0.3 for one in outcomes[:2])
    fresh = correlated(900, 16)
    assert case.sqnr(plan, fresh) > case.sqnr(case.plan, fresh) + 0.2  # of few iterations


@pytest.mark.parametrize("attention", ["float", "int8"])
def test_torch_computes_what_is_written(transformer_case: TransformerCase, attention: str) -> None:
    case = with_branches(narrow(transformer_case(32, bits=4, attention=attention), 4), 3)
    assert case.plan.branches
    samples = BlockSamples(case.graph, case.layers, case.feeds, case.folder / "samples", 1)
    for block in cut(case.graph, case.layers.blockmap):
        samples.run_float(block)
        samples.run_quantized(block, case.plan)
        module = QuantizedBlock(block, case.layers, case.plan, Learned()).eval()
        found = module({name: torch.from_numpy(samples.quantized.get(name, 0)) for name in block.inputs})
        for name in block.outputs:
            written = samples.quantized.get(name, 0)
            error = np.abs(found[name].detach().numpy() - written)
            # A code on a tie may fall to either side; few do, so that hardly any row is off by more than float32's error.
            assert np.quantile(error, 0.9) < 1e-5 * np.abs(written).max()


def test_nothing_learned_is_the_plan_as_it_was(transformer_case: TransformerCase) -> None:
    case = with_branches(narrow(transformer_case(16, bits=4), 4), 2)
    block = cut(case.graph, case.layers.blockmap)[0]
    again = QuantizedBlock(block, case.layers, case.plan, Learned(weights=False)).result()
    assert again.weights == case.plan.weights
    for name in case.plan.branches:
        np.testing.assert_array_equal(again.branches[name].a, case.plan.branches[name].a)
    for name, decision in case.plan.decisions.items():
        found = again.params(name)
        assert decision.params is not None
        assert found is not None
        assert found.scale == pytest.approx(decision.params.scale, rel=1e-6)
        assert (found.zero_point == decision.params.zero_point).all()


@pytest.mark.parametrize("part", ["branch", "scales", "weights"])
def test_only_what_is_asked_for_is_learned(transformer_case: TransformerCase, part: str) -> None:
    case = with_branches(narrow(transformer_case(32, bits=3), 3), 3)
    nothing = {"branch": False, "scales": False, "focus": False, "weights": False}
    plan, _ = learned(case, replace(QUICK, learned=Learned(**{**nothing, part: True})))
    changed = {
        "branch": any(not np.array_equal(plan.branches[name].a, one.a) for name, one in case.plan.branches.items()),
        "weights": dict(plan.weights) != dict(case.plan.weights),
        "scales": any(
            abs(float(plan.params(name).scale / decision.params.scale) - 1) > 1e-4  # type: ignore[union-attr]
            for name, decision in case.plan.decisions.items()
            if decision.site.kind == "activation"
        ),
    }
    assert [name for name, different in changed.items() if different] == [part]


def test_what_loses_on_held_out_samples_is_not_kept(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(8, bits=8), 8)
    wild = replace(QUICK, rates=dict.fromkeys(QUICK.rates, 5.0), iterations=5)
    plan, outcomes = learned(case, wild)
    assert not any(one.kept for one in outcomes)
    assert all(one.after < one.before for one in outcomes)
    assert plan_to_bytes(plan) == plan_to_bytes(case.plan)


def test_a_block_with_an_unknown_operator_keeps_the_closed_form(
    transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxvitq.fit.steps.block_learning import network

    case = narrow(transformer_case(16, bits=3), 4)
    monkeypatch.delitem(vars(network)["OPERATORS"], "Erf")
    plan, outcomes = learned(case, QUICK)
    assert [one.reason for one in outcomes] == [*(f"block {i} cannot be reconstructed: op Erf" for i in range(2)), ""]
    assert all(name.startswith("head") for name in plan.weights)


def test_the_same_seed_gives_the_same_plan(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(8, bits=3), 4)
    quick = replace(QUICK, iterations=6)
    one, other, third = (
        learned(case, replace(quick, seed=seed), name)[0] for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert plan_to_bytes(one) == plan_to_bytes(other)
    assert plan_to_bytes(one) != plan_to_bytes(third)


def test_an_interrupted_run_goes_on_where_it_was(transformer_case: TransformerCase, tmp_path: Path) -> None:
    case = narrow(transformer_case(8, bits=3), 4)
    kept = tmp_path / "kept"
    calls: list[int] = []

    def stop(done: int, total: int, loss: float) -> None:
        del total, loss
        calls.append(done)
        if done >= quick.iterations:  # the second block has begun
            raise KeyboardInterrupt

    quick = replace(QUICK, iterations=6)
    with pytest.raises(KeyboardInterrupt):
        learned(case, replace(quick, checkpoint=kept, progress=stop), "first")
    assert sorted(path.name for path in kept.iterdir()) == ["block0.json", "block0.npz"]
    calls.clear()
    resumed, outcomes = learned(
        case, replace(quick, checkpoint=kept, progress=lambda done, total, loss: calls.append(done)), "second"
    )
    assert min(calls) >= quick.iterations  # the first block was not learned again
    whole, again = learned(case, quick, "third")
    assert plan_to_bytes(resumed) == plan_to_bytes(whole)
    assert outcomes == again
    other = learned(case, replace(quick, seed=5, checkpoint=kept), "fourth")[
        0
    ]  # another run's checkpoints are not its own
    assert plan_to_bytes(other) != plan_to_bytes(whole)
    (kept / "notes.txt").write_text("mine")
    remove_checkpoints(kept)
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def test_half_a_checkpoint_is_none(transformer_case: TransformerCase, tmp_path: Path) -> None:
    case = narrow(transformer_case(8, bits=3), 4)
    quick, kept = replace(QUICK, iterations=4, checkpoint=tmp_path / "kept"), tmp_path / "kept"
    whole = learned(case, quick, "first")[0]
    (kept / "block1.npz").write_bytes((kept / "block1.npz").read_bytes()[:100])
    (kept / "block2.json").write_text("{")
    assert plan_to_bytes(learned(case, quick, "second")[0]) == plan_to_bytes(whole)


def test_easy_samples_come_first(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(16, bits=3), 3)
    samples = BlockSamples(case.graph, case.layers, case.feeds, case.folder / "samples", 1)
    block = cut(case.graph, case.layers.blockmap)[0]
    samples.run_float(block)
    module = QuantizedBlock(block, case.layers, case.plan, Learned())
    training = Training(module, samples, replace(QUICK, curriculum=True, iterations=10, batch=100, drop=0.0))
    with torch.no_grad():
        losses = [float(training.loss([index])) for index in range(training.count)]
    draw = training.draws()
    used = [sorted(draw(step)) for step in range(10)]
    assert [len(one) for one in used] == [3, 5, 7, 9, 11, 12, 12, 12, 12, 12]
    assert max(losses[index] for index in used[0]) <= sorted(losses)[2]
    assert len(losses) == sum(not is_held_out(index) for index in range(16))


def test_an_iteration_has_no_more_rows_than_it_may(
    transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = narrow(transformer_case(16, bits=3), 4)
    samples = BlockSamples(case.graph, case.layers, case.feeds, case.folder / "samples", 1)
    block = cut(case.graph, case.layers.blockmap)[0]
    samples.run_float(block)
    (name,) = case.feeds[0]
    tokens = case.feeds[0][name].shape[-2]
    for rows, expected in ((1000, 8), (4 * tokens + 1, 4), (1, 1)):
        monkeypatch.setattr(training_module, "ROWS", rows)
        training = Training(QuantizedBlock(block, case.layers, case.plan, Learned()), samples, QUICK)
        assert training.batch == len(training.draws()(QUICK.iterations)) == expected


@pytest.mark.parametrize("place", [0, 4])
def test_samples_that_cannot_be_one_batch_are_run_one_by_one(transformer_case: TransformerCase, place: int) -> None:
    joined, alone = (narrow(transformer_case(8, bits=3), 4) for _ in range(2))
    feeds = list(alone.feeds)
    feeds[place] = correlated(1, 1, tokens=11)[0]
    alone = replace(alone, feeds=feeds)
    for case, expected in ((joined, True), (alone, False)):
        samples = BlockSamples(case.graph, case.layers, case.feeds, case.folder / f"samples{expected}", 1)
        block = cut(case.graph, case.layers.blockmap)[0]
        samples.run_float(block)
        module = QuantizedBlock(block, case.layers, case.plan, Learned())
        training = Training(module, samples, replace(QUICK, iterations=2))
        assert training.joined == expected
        training.run(lambda done, loss: None)


def test_one_by_one_has_the_loss_and_the_gradients_of_one_batch(transformer_case: TransformerCase) -> None:
    case = with_branches(narrow(transformer_case(16, bits=4), 4), 2)
    samples = BlockSamples(case.graph, case.layers, case.feeds, case.folder / "samples", 1)
    block = cut(case.graph, case.layers.blockmap)[0]
    samples.run_float(block)
    module = QuantizedBlock(block, case.layers, case.plan, Learned())
    training = Training(module, samples, replace(QUICK, drop=0.0))
    assert training.joined
    found = []
    for joined in (True, False):
        training.joined = joined
        module.zero_grad()
        loss = training.loss([0, 3, 5])
        loss.backward()
        found.append([loss.detach(), *(one.grad for one in module.parameters() if one.grad is not None)])
    assert len(found[0]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # float32 sums in another order


def test_ranks_go_where_the_error_is_of_low_rank(transformer_case: TransformerCase) -> None:
    case = transformer_case(32, bits=8)
    rng = np.random.default_rng(0)
    weight = case.layers.weight("b0_fc1")
    spoiled = weight + 0.3 * (rng.standard_normal((32, 4)) @ rng.standard_normal((4, 64))).astype(np.float32)
    case = replace(case, plan=case.plan.with_weights({"b0_fc1": spoiled}))
    case = with_branches(case, 8)
    options = RankSearch(
        candidates=(0, 2, 4, 8), budget=0.3, training=Reconstruction(iterations=60, batch=8, drop=0.0, threads=1)
    )
    (case.folder / "ranks").mkdir()
    ranks = search_ranks(case.graph, case.layers, case.plan, case.feeds, case.folder / "ranks", options)
    assert ranks["b0_norm2"] in {4, 8}
    assert ranks["b0_norm2"] == max(ranks.values())
    (case.folder / "again").mkdir()
    free = replace(options, price=0.0)
    dear = search_ranks(case.graph, case.layers, case.plan, case.feeds, case.folder / "again", free)
    assert sum(dear.values()) >= sum(ranks.values())


def test_without_torch_there_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torch"):
        require_torch()
