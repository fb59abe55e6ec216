"""Samples to learn from: those not held out, and mixtures of them, the same for a seed; nothing else is evaluated on."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from fitted_cases import Case, correlated

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.core.plan import plan_to_bytes
from onnxvitq.fit.steps.block_learning.network import cut
from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
from onnxvitq.fit.steps.block_learning.samples import BlockSamples
from onnxvitq.fit.steps.block_learning.training import Reconstruction

TransformerCase = Callable[..., Case]


def mixed(
    case: Case, name: str, times: float = 2.0, seed: int = 0, feeds: list[Mapping[str, np.ndarray]] | None = None
) -> BlockSamples:
    samples = BlockSamples(case.graph, case.layers, case.feeds if feeds is None else feeds, case.folder / name, 1)
    samples.mix(times, seed)
    return samples


def test_mixtures_are_of_two_samples_that_are_not_held_out(transformer_case: TransformerCase) -> None:
    case = transformer_case(8)
    samples = mixed(case, "a", times=1.5)
    assert samples.count == 8
    assert samples.held_out == [3, 7]
    assert samples.learned_from == [0, 1, 2, 4, 5, 6, *range(8, 17)]  # 1.5 for each of 6
    (name,) = samples.float.names
    own = np.stack([samples.float.get(name, one).ravel() for one in range(8) if not is_held_out(one)])
    for one in range(8, 17):
        value = samples.float.get(name, one)
        shares, rest, _, _ = np.linalg.lstsq(own.T, value.ravel(), rcond=None)
        assert rest < 1e-6
        assert np.isclose(np.sort(shares)[-2:].sum(), 1, atol=1e-5)
        assert np.abs(np.sort(shares)[:-2]).max() < 1e-5
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, samples.quantized.get(name, one))


def test_mixtures_are_those_of_the_seed(transformer_case: TransformerCase) -> None:
    case = transformer_case(8)
    one, again, other = (mixed(case, name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    (name,) = one.float.names
    values = [np.stack([samples.float.get(name, 8 + i) for i in range(12)]) for samples in (one, again, other)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2])


def test_what_cannot_be_mixed_is_not(transformer_case: TransformerCase) -> None:
    case = transformer_case(8)
    (name,) = case.feeds[0]
    tokens = [{name: feed[name].astype(np.int64)} for feed in case.feeds]
    shapes = [*case.feeds[:-2], *correlated(1, 1, tokens=11), case.feeds[-1]]
    for kind, feeds in (("tokens", tokens), ("shapes", shapes), ("one", case.feeds[:1])):
        samples = mixed(case, kind, feeds=list(feeds))
        assert samples.learned_from == [one for one in range(len(feeds)) if not is_held_out(one)]


def test_mixtures_pass_both_networks_and_judge_nothing(transformer_case: TransformerCase) -> None:
    case = transformer_case(8, bits=4)
    alone, samples = mixed(case, "a", times=0.0), mixed(case, "b", times=1.0)
    block = cut(case.graph, case.layers.blockmap)[0]
    outputs = [one.held_out_outputs(block, case.plan) for one in (alone, samples)]
    for name in block.outputs:
        assert len(outputs[1][name]) == 2
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])
    samples.run_float(block)
    samples.run_quantized(block, case.plan)
    for name in block.outputs:
        np.testing.assert_array_equal(samples.quantized.get(name, 3), outputs[1][name][0])
        for one in samples.learned_from:
            in_float, quantized = samples.float.get(name, one), samples.quantized.get(name, one)
            assert 0 < np.abs(in_float - quantized).max() < 0.5 * np.abs(in_float).max()
    samples.forget({*block.outputs})
    assert set(samples.float.names) == set(block.outputs) == set(samples.quantized.names)


def test_mixtures_change_what_is_learned_and_are_part_of_what_a_checkpoint_is_of(
    transformer_case: TransformerCase,
) -> None:
    case = transformer_case(8, bits=3)
    without = Reconstruction(iterations=4, mixtures=0.0, threads=1)
    plans = []
    for name, options in (("a", without), ("b", replace(without, mixtures=2.0))):
        plans.append(reconstruct(case.graph, case.layers, case.plan, case.feeds, case.folder / name, options)[0])
    assert plan_to_bytes(plans[0]) != plan_to_bytes(plans[1])
    assert without.described != replace(without, mixtures=2.0).described
