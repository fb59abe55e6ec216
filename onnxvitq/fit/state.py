"""Where a fit stands, as an immutable state: rolling back is keeping the old one. And what does not change during a fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blocks.positions import decisive_positions
from onnxvitq.calibration.cache import CalibrationCache
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.calibration.kept import KeptStatistics
from onnxvitq.calibration.measure import Measurer
from onnxvitq.calibration.sweep import Sampling
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions, held_out_decisions
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.probe import Samples
from onnxvitq.evaluation.tasks.choose import evaluated_output
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.graph.reading import LoadedModel
from onnxvitq.numerics.decibels import CAP_DB
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.targets.registry import target_of
from onnxvitq.targets.target import Target

EVALUATED = 16  # held-out samples at most that a plan is evaluated on: each evaluation runs all of them
DECISIVE = 32.0  # weight of a class token's row in every mean (docs/methods.md, "Rows that decide")

Progress = Callable[[str, int, int | None], None]  # stage, done, total


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody is told of."""
    del stage, done, total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitState:
    """Where a fit stands.

    Attributes:
        graph: canonical float graph, exact changes included; never edited in place.
        layers: what was found in it, and its constants.
        plan: formats and parameters so far.
        kept: statistics of ``graph`` on the calibration samples; see ``statistics``.
        score: the plan's output against the float model's, on held-out samples; None where plans are not evaluated.
        best_db: the highest output SQNR in dB of what was kept so far.
    """

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    kept: KeptStatistics
    score: OutputDifference | None = None
    best_db: float = -CAP_DB

    @property
    def statistics(self) -> Statistics:
        """What was measured of ``graph``."""
        return self.kept.statistics

    @property
    def sqnr_db(self) -> float | None:
        """Of the plan's output, in dB; None where plans are not evaluated."""
        return None if self.score is None else round(self.score.sqnr_db, 3)

    def scored(self, plan: QuantPlan, score: OutputDifference | None) -> "FitState":
        """The state with another plan and its score."""
        best = self.best_db if score is None else max(self.best_db, score.sqnr_db)
        return replace(self, plan=plan, score=score, best_db=best)

    def restarted(self, plan: QuantPlan, score: OutputDifference | None) -> "FitState":
        """The same where scores so far are nothing to compare with: other bits, other formats."""
        return replace(self, best_db=-CAP_DB).scored(plan, score)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitContext:
    """What does not change during a fit.

    Attributes:
        config: options.
        dataset: calibration samples, fitted on and held out.
        float_outputs: the float model's evaluated output, a calibration sample each, (B, ..).
        measurer: runs sweeps over the samples.
        output: name of the output that is evaluated.
        outputs: how many outputs the model has.
        target: the runtime that plans are written for.
        progress: called with (stage, done, total).
        checkpoint: folder for blocks that were learned; None keeps none.
        decisions: on other data than the calibration samples, where a promise is evaluated on these.
        task: what the model's outputs mean; None where the evaluated output's shape says it.
    """

    config: QuantConfig
    dataset: CalibrationDataset
    float_outputs: Sequence[FloatArray]
    measurer: Measurer
    output: str
    outputs: int
    target: Target
    progress: Progress
    checkpoint: Path | None = None
    decisions: Decisions | None = None
    task: Task | None = None

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        dataset: CalibrationDataset,
        config: QuantConfig,
        progress: Progress = silent,
        cache: CalibrationCache | None = None,
    ) -> "FitContext":
        """For a model that was read, before the first sweep: without float outputs."""
        measurer = Measurer(
            model=str(loaded.path),
            feeds=dataset,
            threads=config.threads,
            progress=lambda done, count: progress("calibrate", done, count),
            cache=cache,
        )
        return cls(
            config=config,
            dataset=dataset,
            float_outputs=(),
            measurer=measurer,
            output=evaluated_output(loaded.outputs),
            outputs=len(loaded.outputs),
            target=target_of(config),
            progress=progress,
        )

    def held_out(self, most: int | None = None) -> Samples:
        """Held-out samples with their float outputs; ``most`` of them at most, spread evenly: folders are sorted."""
        held = [(feed, self.float_outputs[i]) for i, feed in self.dataset.held_out() if i < len(self.float_outputs)]
        if most is not None and most < len(held):
            held = [held[place * len(held) // most] for place in range(most)]
        references = [reference for _, reference in held]
        return Samples(feeds=[feed for feed, _ in held], references=references, task=self.task)

    def held_out_decisions(self) -> Decisions:
        """What a promise is evaluated on: other data, or samples held out of these."""
        samples = self.held_out()
        return self.decisions or held_out_decisions(samples.feeds, samples.references, self.float_outputs, self.task)

    def first_samples(self, most: int) -> Samples:
        """The first calibration samples, those that are fitted on among them."""
        references = self.float_outputs[: self.dataset.kept][:most]
        return Samples(feeds=list(islice(self.dataset, len(references))), references=references, task=self.task)

    def evaluator(self, state: FitState, samples: Samples | None = None) -> OutputEvaluator:
        """Of plans for the state's graph, on these samples, or on some of those held out."""
        samples = samples or self.held_out(EVALUATED)
        return OutputEvaluator(
            graph=state.graph,
            layers=state.layers,
            feeds=samples.feeds,
            references=samples.references,
            threads=self.config.threads,
            target=self.target,
            task=self.task,
        )

    def network(self, state: FitState) -> PlannedNetwork:
        """A state as those see it who choose bits."""
        return PlannedNetwork(
            graph=state.graph,
            layers=state.layers,
            plan=state.plan,
            statistics=state.statistics,
            target=self.target,
        )

    def score(self, state: FitState, plan: QuantPlan) -> OutputDifference | None:
        """A plan's output against the float model's; None where plans are not evaluated."""
        return self.evaluator(state).difference(plan) if self.config.evaluated else None

    def sampling(self, state: FitState) -> Sampling:
        """How rows of the state's tensors are drawn."""
        return Sampling(seed=self.config.seed, positions=token_weights(state))


def token_weights(state: FitState) -> FloatArray | None:
    """How much each token's row counts in every mean, (T,): more where the output picks single tokens; None where all alike."""
    decisive = decisive_positions(state.graph, state.layers.blockmap)
    tokens = max((a.tokens or 0 for a in state.layers.blockmap.attentions), default=0)
    if not decisive or max(decisive) >= tokens:
        return None
    weights = np.ones(tokens, np.float32)
    weights[list(decisive)] = DECISIVE
    return weights
