"""The method "aiqvit" (Paper B): branches of low rank in closed form, and the reconstruction of every block from there on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.state import FitContext, FitState, token_weights
from onnxvitq.fit.step import LayerGain
from onnxvitq.fit.steps.block_learning.checkpoint import BlockOutcome
from onnxvitq.fit.steps.block_learning.ranks import CANDIDATES, RankSearch, search_ranks
from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
from onnxvitq.fit.steps.block_learning.training import Reconstruction
from onnxvitq.fit.steps.low_rank.branches import Branches, fit_branches
from onnxvitq.report.records import Part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learning:
    """What both steps of the method need.

    Attributes:
        graph: canonical, never changed.
        layers: what was found in it.
        feeds: calibration samples.
        folder: for temporary files; the caller removes it.
        positions: weight of each token in every mean, (T,); None weighs all alike.
        progress: called with (stage, done, total).
        checkpoint: folder for blocks that are done; None keeps none.
    """

    graph: gs.Graph
    layers: Layers
    feeds: Iterable[Mapping[str, np.ndarray]]
    folder: Path
    positions: FloatArray | None
    progress: Callable[[str, int, int | None], None]
    checkpoint: Path | None

    @classmethod
    def of(cls, state: FitState, context: FitContext, folder: Path) -> "Learning":
        """For a state of the fit."""
        return cls(
            graph=state.graph,
            layers=state.layers,
            feeds=context.dataset,
            folder=folder,
            positions=token_weights(state),
            progress=context.progress,
            checkpoint=context.checkpoint,
        )

    def branches(self, plan: QuantPlan, config: QuantConfig) -> tuple[QuantPlan, LayerGain]:
        """The plan with branches of low rank in closed form, and what they did to the layers.

        Raises:
            InvalidGraphError: a subgraph does not run.
            OSError: no room in the folder.
        """
        options = Branches(budget=config.branch_budget, positions=self.positions, threads=config.threads)
        if config.ranks == "darts":
            options = replace(options, rank=self._searched_ranks(plan, config))
        return self._fitted("branches", plan, options)

    def reconstruction(self, plan: QuantPlan, config: QuantConfig) -> tuple[QuantPlan, LayerGain, tuple[Part, ...]]:
        """The plan with what each block learned, and what became of each block.

        Raises:
            InvalidGraphError: a subgraph does not run.
            OSError: no room in the folder.
        """
        options = Reconstruction(
            iterations=config.iterations,
            curriculum=config.curriculum,
            positions=self.positions,
            seed=config.seed,
            threads=config.threads,
            checkpoint=self.checkpoint,
            progress=lambda done, total, loss: self.progress(f"learn (loss {loss:.3g})", done, total),
        )
        proposed, outcomes = reconstruct(self.graph, self.layers, plan, self.feeds, self.folder, options)
        gain = LayerGain(kept=sum(outcome.kept for outcome in outcomes), layers=len(outcomes))
        return proposed, gain, tuple(map(_part, outcomes))

    def _fitted(self, name: str, plan: QuantPlan, options: Branches) -> tuple[QuantPlan, LayerGain]:
        folder = self.folder / name
        folder.mkdir()
        options = replace(options, progress=lambda done, total: self.progress("branches", done, total))
        return fit_branches(self.graph, self.layers, plan, self.feeds, folder, options)

    def _searched_ranks(self, plan: QuantPlan, config: QuantConfig) -> dict[str, int]:
        largest = Branches(rank=max(CANDIDATES), positions=self.positions, threads=config.threads)
        start, _ = self._fitted("largest", plan, largest)
        training = Reconstruction(
            iterations=config.iterations // 4,
            drop=0.0,
            positions=self.positions,
            seed=config.seed,
            threads=config.threads,
        )
        search = RankSearch(budget=config.branch_budget, training=training)
        return search_ranks(self.graph, self.layers, start, self.feeds, self.folder / "ranks", search)


def _part(outcome: BlockOutcome) -> Part:
    """Of a block: dB of its own outputs on held-out samples, and why nothing was learned where that is so."""
    return Part(
        part=f"block {outcome.unit}",
        accepted=outcome.kept,
        before=outcome.before,
        after=outcome.after,
        figures={"unit": outcome.unit, "kept": outcome.kept, "reason": outcome.reason},
    )
