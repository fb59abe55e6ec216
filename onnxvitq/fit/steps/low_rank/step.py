"""Branches of low rank beside the linear layers, in closed form (Paper B): they cost time and bytes, so they have to gain."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState, token_weights
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.fit.steps.low_rank.branches import Branches, fit_branches
from onnxvitq.fit.steps.low_rank.ranks import branch_time
from onnxvitq.graph.scratch import scratch_error, scratch_folder
from onnxvitq.report.records import Part


class LowRankBranches:
    """A branch for each linear layer that the budget has room for."""

    name = "branches"

    def runs(self, config: QuantConfig) -> bool:
        """With the method "aiqvit"."""
        return config.learns

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: it runs the samples itself."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with branches, of ranks by what they gain or as a search by gradients says."""
        config = context.config
        options = Branches(
            budget=config.branch_budget,
            positions=token_weights(state),
            threads=config.threads,
            target=context.target,
            progress=lambda done, total: context.progress("branches", done, total),
        )
        with scratch_folder() as folder:
            try:
                if config.ranks == "darts":
                    options = replace(options, rank=_searched_ranks(state, context, folder, options))
                plan, gain = _fitted(state, context, folder / "branches", options)
            except OSError as error:
                raise scratch_error(folder, error) from error
        return Proposal(acceptance=Acceptance.MUST_GAIN, plan=plan, gain=gain, parts=branch_parts(plan))


def _fitted(state: FitState, context: FitContext, folder: Path, options: Branches) -> tuple[QuantPlan, LayerGain]:
    folder.mkdir()
    return fit_branches(state.graph, state.layers, state.plan, context.dataset, folder, options)


def _searched_ranks(state: FitState, context: FitContext, folder: Path, options: Branches) -> Mapping[str, int]:
    """Tensor -> rank of the branches of its readers, by gradients from the largest rank on."""
    from onnxvitq.fit.steps.block_learning.rank_search import CANDIDATES, RankSearch, search_ranks  # loads torch
    from onnxvitq.fit.steps.block_learning.training import Reconstruction

    config = context.config
    largest, _ = _fitted(state, context, folder / "largest", replace(options, rank=max(CANDIDATES)))
    training = Reconstruction(
        iterations=config.iterations // 4,
        drop=0.0,
        positions=options.positions,
        seed=config.seed,
        threads=config.threads,
        target=context.target,
    )
    search = RankSearch(budget=config.branch_budget, training=training)
    return search_ranks(state.graph, state.layers, largest, context.dataset, folder / "ranks", search)


def branch_parts(plan: QuantPlan) -> tuple[Part, ...]:
    """Rank, bytes and time of each branch; the time over that of the layer's own product."""
    return tuple(
        Part(
            part=name,
            figures={"rank": branch.rank, "bytes": branch.nbytes, "time": round(branch_time(branch), 3)},
        )
        for name, branch in plan.branches.items()
    )
