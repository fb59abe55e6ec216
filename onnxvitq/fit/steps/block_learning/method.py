"""The method "aiqvit" in two steps, each of which the caller judges by the model's output: branches of low rank in closed
form, and the reconstruction of every block from there on.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.outcome import StepOutcome
from onnxvitq.fit.steps.block_learning.ranks import CANDIDATES, RankSearch, search_ranks
from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
from onnxvitq.fit.steps.block_learning.training import Reconstruction
from onnxvitq.fit.steps.low_rank.branches import Branches, branch_time, fit_branches
from onnxvitq.targets.ort_cpu.branches import branch_bytes

BRANCHES, RECONSTRUCTION = "branches", "reconstruction"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learning:
    """What both steps need: the network, calibration samples, a scratch folder that the caller removes, weights of tokens,
    whom to tell of progress (stage, done, total), and a folder for what is done, if any.
    """

    graph: gs.Graph
    layers: Layers
    feeds: Iterable[Mapping[str, np.ndarray]]
    folder: Path
    positions: FloatArray | None
    progress: Callable[[str, int, int | None], None]
    checkpoint: Path | None

    def run(self, step: str, plan: QuantPlan, config: QuantConfig) -> tuple[QuantPlan, dict[str, Any]]:
        """What one of the steps proposes, and its entry in the report but for what the output says.

        Raises:
            InvalidGraphError: a piece of the graph does not run.
            OSError: no room in the scratch folder.
        """
        return self._branches(plan, config) if step == BRANCHES else self._reconstruction(plan, config)

    def _branches(self, plan: QuantPlan, config: QuantConfig) -> tuple[QuantPlan, dict[str, Any]]:
        options = Branches(budget=config.branch_budget, positions=self.positions, threads=config.threads)
        if config.ranks == "darts":
            options = replace(options, rank=self._searched_ranks(plan, config))
        proposed, outcome = self._fitted("branches", plan, options)
        return proposed, {**asdict(outcome), "parts": described_branches(proposed)}

    def _fitted(self, name: str, plan: QuantPlan, options: Branches) -> tuple[QuantPlan, StepOutcome]:
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

    def _reconstruction(self, plan: QuantPlan, config: QuantConfig) -> tuple[QuantPlan, dict[str, Any]]:
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
        entry: dict[str, Any] = {"name": RECONSTRUCTION, "kept": sum(one.kept for one in outcomes)}
        entry |= {"layers": len(outcomes), "parts": [asdict(one) for one in outcomes]}
        return proposed, entry


def described_branches(plan: QuantPlan) -> list[dict[str, Any]]:
    """Rank, bytes and time of each branch, for the report; the time over that of the layer's own product."""
    return [
        {"part": name, "rank": one.rank, "bytes": branch_bytes(one), "time": round(branch_time(one), 3)}
        for name, one in plan.branches.items()
    ]
