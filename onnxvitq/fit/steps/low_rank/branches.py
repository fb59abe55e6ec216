"""Branches of low rank for every planned linear layer, in closed form: ranks by what they gain within a budget of bytes.

The float network and the quantized-so-far network run side by side, as for the weights, twice: the first run tells what each
rank of each layer would gain, the second fits the branches of the ranks chosen, each against what the layers before it, their
branches included, really put out. Layers that read one tensor share A: one small Gemm more for all of them.

A branch reads the codes that the product reads. Codes of eight bits of its own were tried beside narrow activations: what
the narrow ones lost is rounding noise, which hardly depends on the input linearly, so a regression on finer codes explains
*less* of the error than one on the codes themselves (3-bit inputs, text transformer: 0.1 dB against 1 dB a layer).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import one_blas_thread
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.step import LayerGain, layer_gain
from onnxvitq.fit.steps.low_rank.fit import BranchFitter, quantized_linear
from onnxvitq.fit.steps.low_rank.ranks import FittedBranches, best_ranks, weight_bytes
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import SideBySide, readers_by_input
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target

MAX_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """How large the branches may be.

    Attributes:
        budget: their bytes over those of the packed weights.
        latency: their time over that of the planned linear layers, as far as counting tells it (``ranks.ADDED``, ``SMALL``): a
            branch costs passes over the layer's output, whatever its rank, and branches beside all layers of a ViT-S take a
            quarter of the time again.
        rank: instead of both budgets: one for every layer, or by the tensor that layers read.
        worth_db: what a branch has to gain on held-out samples.
        positions: (T,) weight of each token in every mean, where a tensor has T tokens; None weighs all alike.
        threads: of onnxruntime and of the fit; 0 takes one a core.
        target: that products are written for.
        progress: called with how many of the tensors that layers read are done, over both runs, and of how many.
    """

    budget: float = 0.1
    latency: float = 0.08
    rank: int | Mapping[str, int] | None = None
    worth_db: float = 0.2
    positions: FloatArray | None = None
    threads: int = 0
    target: Target = DEFAULT_TARGET
    progress: Callable[[int, int], None] = lambda *_: None


def fit_branches(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Branches,
) -> tuple[QuantPlan, LayerGain]:
    """A branch for every planned linear layer that gains from it on held-out samples.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: with parameters for every site.
        feeds: calibration samples; one in four is held out (``calibration.held_out``).
        folder: for files; the caller removes it.
        options: see there.

    Returns:
        The plan with branches, and the mean held-out SQNR in dB of the layers' outputs without and with them.

    Raises:
        InvalidGraphError: a subgraph does not run.
        OSError: no room in ``folder``.
    """
    runs = _Runs(graph, layers, plan, feeds, options)
    first: list[FittedBranches] = []
    with one_blas_thread():
        if options.rank is None:
            largest = dict.fromkeys(readers_by_input(layers.blockmap.linears), MAX_RANK)
            first = runs.run(folder / "gains", largest, keep=False)
            ranks = best_ranks(first, options.budget * weight_bytes(layers, plan), options.latency)
        else:
            tensors, rank = readers_by_input(layers.blockmap.linears), options.rank
            ranks = {tensor: rank if isinstance(rank, int) else rank.get(tensor, 0) for tensor in tensors}
        second = {group.tensor: group for group in runs.run(folder / "branches", ranks, keep=True)}
    fitted = list({**{group.tensor: group.without() for group in first}, **second}.values())
    kept = [group for group in fitted if group.branches]
    plan = plan.with_branches({name: branch for group in kept for name, branch in group.branches.items()})
    plan = plan.with_biases({name: bias for group in kept for name, bias in group.biases.items()})
    before, after = [group.before for group in fitted], [group.after for group in fitted]
    return plan, layer_gain(before, after, len(kept))


class _Runs:
    """Both networks side by side over all samples, once for the gains and once for the branches."""

    def __init__(
        self,
        graph: gs.Graph,
        layers: Layers,
        plan: QuantPlan,
        feeds: Iterable[Mapping[str, np.ndarray]],
        options: Branches,
    ) -> None:
        self._graph, self._layers, self._plan, self._feeds, self._options = graph, layers, plan, feeds, options

    def run(self, folder: Path, ranks: Mapping[str, int], *, keep: bool) -> list[FittedBranches]:
        """One run over the layers that have a rank; with ``keep``, later layers see the branches of those before them."""
        layers, plan, options = self._layers, self._plan, self._options
        folder.mkdir()
        quantized = options.target.write_products(self._graph, layers, plan)
        networks = SideBySide(self._graph, quantized, layers, self._feeds, folder, options.threads)
        tensors = readers_by_input(layers.blockmap.linears)
        runs = 2 if options.rank is None else 1
        fitted = []
        for number, (tensor, readers) in enumerate(tensors.items()):
            options.progress(number + (runs - 1) * keep * len(tensors), runs * len(tensors))
            streams = networks.reach(tensor, readers)
            able = [linear for linear in readers if _may_have_branch(plan, linear)]
            now = plan
            if able and ranks[tensor]:
                group = self._fitter(able).fit(networks, streams, ranks[tensor])
                fitted.append(group)
                if keep and group.branches:
                    now = plan.with_branches(group.branches).with_biases(group.biases)
            for linear in readers:
                quantized = quantized_linear(layers, now, linear) if planned_linear(plan, linear) else None
                networks.compute(linear, quantized)
        return fitted

    def _fitter(self, linears: list[Linear]) -> BranchFitter:
        options = self._options
        return BranchFitter(
            self._layers,
            self._plan,
            linears,
            worth_db=options.worth_db,
            positions=options.positions,
            threads=options.threads,
        )


def _may_have_branch(plan: QuantPlan, linear: Linear) -> bool:
    """Not where the input's range is measured at run time: its codes have no scale that could be written beside them."""
    return planned_linear(plan, linear) and linear.input not in plan.dynamic
