"""Block after block is made to put out what the float block puts out, from what the quantized network before it gives it.

What a block learned is kept only if its error on held-out samples, measured on the written block in onnxruntime, is lower
than that of the closed form it started from.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import torch

from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.steps.block_learning.block import QuantizedBlock
from onnxvitq.fit.steps.block_learning.checkpoint import BlockOutcome, Checkpoints, fingerprint
from onnxvitq.fit.steps.block_learning.network import BlockSubgraph, cut
from onnxvitq.fit.steps.block_learning.samples import BlockSamples
from onnxvitq.fit.steps.block_learning.training import Reconstruction, Training, weights_of_rows
from onnxvitq.numerics.decibels import sqnr_of_error


def reconstruct(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Reconstruction,
) -> tuple[QuantPlan, tuple[BlockOutcome, ...]]:
    """Learn every block that has a planned linear layer.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: the closed form to start from, with parameters for every site.
        feeds: calibration samples; one in four is held out (``calibration.held_out``).
        folder: for files; the caller removes it.
        options: see there.

    Returns:
        The plan with what was learned, and what became of each block, in the order of the network.

    Raises:
        InvalidGraphError: a block does not run.
        OSError: no room in ``folder``.
    """
    blocks = cut(graph, layers.blockmap)
    samples = BlockSamples(graph, layers, feeds, folder, options.threads, options.target)
    checkpoints = Checkpoints(options.checkpoint, fingerprint(plan, options.described, samples.inputs()))
    samples.mix(options.mixtures, options.seed)
    learner = _BlockLearner(layers, samples, options)
    outcomes = []
    for block in blocks:

        def report(done: int, loss: float, number: int = block.index) -> None:
            options.progress(number * options.iterations + done, len(blocks) * options.iterations, loss)

        samples.run_float(block)
        done = checkpoints.load(block.index)
        if done is None:
            plan, outcome = learner.learn(block, plan, report)
            checkpoints.save(plan, outcome)
        else:
            plan, outcome = done
        outcomes.append(outcome)
        samples.run_quantized(block, plan)
        samples.forget({name for later in blocks[block.index + 1 :] for name in later.inputs})
    return plan, tuple(outcomes)


class _BlockLearner:
    """Learns the blocks of one network in turn."""

    def __init__(self, layers: Layers, samples: BlockSamples, options: Reconstruction) -> None:
        self._layers, self._samples, self._options = layers, samples, options

    def learn(
        self, block: BlockSubgraph, plan: QuantPlan, report: Callable[[int, float], None]
    ) -> tuple[QuantPlan, BlockOutcome]:
        """The plan with what this block learned, if that is better."""
        before = self._held_out_sqnr(block, plan)
        reason = self._reason_not_to_learn(block, plan)
        if reason:
            return plan, BlockOutcome(block=block.index, before=before, after=before, kept=False, reason=reason)
        torch.manual_seed(self._options.seed)
        module = QuantizedBlock(block, self._layers, plan, self._options.learned)
        Training(module, self._samples, self._options).run(report)
        learned = module.result()
        after = self._held_out_sqnr(block, learned)
        outcome = BlockOutcome(block=block.index, before=before, after=after, kept=after > before)
        return learned if outcome.kept else plan, outcome

    def _reason_not_to_learn(self, block: BlockSubgraph, plan: QuantPlan) -> str:
        if block.refused:
            return f"block {block.index} cannot be reconstructed: op {', '.join(block.refused)}"
        names = {node.name for node in block.nodes}
        linears = [linear for linear in self._layers.blockmap.linears if linear.name in names]
        if any(linear.input in plan.dynamic for linear in linears):
            return "an input's range is measured at run time"
        return "" if any(planned_linear(plan, linear) for linear in linears) else "nothing in it is quantized"

    def _held_out_sqnr(self, block: BlockSubgraph, plan: QuantPlan) -> float:
        """Of a block's outputs in dB, tokens weighted."""
        outputs = self._samples.held_out_outputs(block, plan)
        return sqnr_of_error(sum(self._relative_error(name, outputs[name]) for name in block.outputs))

    def _relative_error(self, name: str, values: Sequence[np.ndarray]) -> float:
        """Error power over power of one output, over the samples held out; 0 where it is not float32."""
        positions: FloatArray | None = self._options.positions
        noise = signal = 0.0
        for sample, value in zip(self._samples.held_out, values, strict=True):
            in_float = self._samples.float.get(name, sample)
            if in_float.dtype != np.float32:
                continue
            weights = weights_of_rows(in_float.shape, positions)
            noise += float((weights * np.square(value - in_float, dtype=np.float64)).sum())
            signal += float((weights * np.square(in_float, dtype=np.float64)).sum())
        return noise / max(signal, sys.float_info.min)
