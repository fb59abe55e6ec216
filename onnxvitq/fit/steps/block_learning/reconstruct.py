"""Block after block is made to put out what the float block puts out, from what the quantized network before it gives it.

What a block learned is kept only if its error on held-out samples, measured on the written block in onnxruntime, is lower
than that of the closed form it started from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import torch

from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.steps.block_learning.block import QuantizedUnit
from onnxvitq.fit.steps.block_learning.checkpoint import BlockOutcome, Checkpoints, fingerprint
from onnxvitq.fit.steps.block_learning.network import BlockSubgraph, cut
from onnxvitq.fit.steps.block_learning.samples import Samples
from onnxvitq.fit.steps.block_learning.training import Reconstruction, Training, token_weights
from onnxvitq.numerics.decibels import sqnr_of_error


def reconstruct(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Reconstruction,
) -> tuple[QuantPlan, tuple[BlockOutcome, ...]]:
    """Learn every unit that has a planned linear.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: the closed form to start from, with parameters for every site.
        feeds: calibration samples; one in four judges.
        folder: for files; the caller removes it.
        options: see there.
    """
    units = cut(graph, layers.blockmap)
    run = _Run(layers, Samples(graph, layers, feeds, folder, options.threads), options)
    checkpoints = Checkpoints(options.checkpoint, fingerprint(plan, options.described, run.samples.inputs()))
    run.samples.mix(options.mixtures, options.seed)
    outcomes = []
    for unit in units:

        def report(done: int, loss: float, unit: BlockSubgraph = unit) -> None:
            options.progress(unit.index * options.iterations + done, len(units) * options.iterations, loss)

        run.samples.run_exact(unit)
        done = checkpoints.load(unit.index)
        if done is None:
            plan, outcome = run.unit(unit, plan, report)
            checkpoints.save(plan, outcome)
        else:
            plan, outcome = done
        outcomes.append(outcome)
        run.samples.run_coded(unit, plan)
        run.samples.forget({name for later in units[unit.index + 1 :] for name in later.inputs})
    return plan, tuple(outcomes)


class _Run:
    """One reconstruction: learns the units in turn."""

    def __init__(self, layers: Layers, samples: Samples, options: Reconstruction) -> None:
        self._layers, self.samples, self._options = layers, samples, options

    def unit(
        self, unit: BlockSubgraph, plan: QuantPlan, report: Callable[[int, float], None]
    ) -> tuple[QuantPlan, BlockOutcome]:
        """The plan with what this unit learned, if that is better."""
        judge = _Judge(unit, self.samples, self._options.positions)
        before = judge.sqnr(self.samples.judged(unit, plan))
        reason = self._reason_not_to_learn(unit, plan)
        if reason:
            return plan, BlockOutcome(unit=unit.index, before=before, after=before, kept=False, reason=reason)
        torch.manual_seed(self._options.seed)
        module = QuantizedUnit(unit, self._layers, plan, self._options.learned)
        Training(module, self.samples, self._options).run(report)
        learned = module.result()
        after = judge.sqnr(self.samples.judged(unit, learned))
        outcome = BlockOutcome(unit=unit.index, before=before, after=after, kept=after > before)
        return learned if outcome.kept else plan, outcome

    def _reason_not_to_learn(self, unit: BlockSubgraph, plan: QuantPlan) -> str:
        if unit.refused:
            return f"block {unit.index} cannot be reconstructed: op {', '.join(unit.refused)}"
        names = {node.name for node in unit.nodes}
        linears = [one for one in self._layers.blockmap.linears if one.name in names]
        if any(one.input in plan.dynamic for one in linears):
            return "an input's range is measured at run time"
        return "" if any(planned_linear(plan, one) for one in linears) else "nothing in it is quantized"


class _Judge:
    """Held-out SQNR of a unit's outputs, tokens weighted."""

    def __init__(self, unit: BlockSubgraph, samples: Samples, positions: FloatArray | None) -> None:
        self._outputs, self._samples, self._positions = unit.outputs, samples, positions

    def sqnr(self, found: Mapping[str, Sequence[np.ndarray]]) -> float:
        ratio = 0.0
        for name in self._outputs:
            noise = signal = 0.0
            for sample, value in zip(self._samples.held, found[name], strict=True):
                exact = self._samples.exact.get(name, sample)
                if exact.dtype != np.float32:
                    continue
                weights = token_weights(exact.shape, self._positions)
                noise += float((weights * (value - exact) ** 2).sum(dtype=np.float64))
                signal += float((weights * exact**2).sum(dtype=np.float64))
            ratio += noise / max(signal, 1e-30)
        return sqnr_of_error(ratio)
