"""From a loaded float model and calibration data to a graph, what was found in it, and a fitted plan.

Order: layers outside the blocks that ruin the output stay in float, streams are rotated and channels mapped (exact), bits
chosen where they may differ, scales searched, formats chosen, weights solved again (or biases corrected), blocks learned. Each
of these is kept unless it harms the model's *output* on held-out samples.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blocks.find import find_blocks
from onnxvitq.blocks.positions import decisive_positions
from onnxvitq.calibration.cache import CalibrationCache, read_stats, write_stats
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.calibration.measure import Measurer
from onnxvitq.calibration.propagate import Change
from onnxvitq.calibration.sweep import Sampling
from onnxvitq.core.config import QuantConfig, StepName
from onnxvitq.core.layers import BlockMap, products
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups, without_nodes
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions, held_out_decisions
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.one_at_a_time import one_at_a_time
from onnxvitq.evaluation.probe import OutputProbe, Samples
from onnxvitq.evaluation.saturation import describe_saturation, estimate_linears
from onnxvitq.fit.acceptance import DOUBT_DB, PartOutcome, accept_parts, drop_harmful_products
from onnxvitq.fit.exact_changes import EXACT_STEPS, Proposal, propose, rounds_of_changes
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.outcome import Step
from onnxvitq.fit.steps.bias import CorrectBias
from onnxvitq.fit.steps.block_learning.available import require_torch
from onnxvitq.fit.steps.channel_scaling.choose import scaling_requests
from onnxvitq.fit.steps.input_formats import (
    choose_contexts,
    choose_inputs,
    choose_outer_linears,
    most_accurate,
    outer_linears_of_8_bits,
)
from onnxvitq.fit.steps.ranges import MinMaxRanges
from onnxvitq.fit.steps.scale_search import SearchScales
from onnxvitq.fit.steps.weight_reconstruction.solve import WeightReconstruction, reconstruct_weights
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import LoadedModel
from onnxvitq.graph.scratch import save_in_scratch, scratch_error, scratch_folder
from onnxvitq.graph.writing import to_proto
from onnxvitq.numerics.decibels import CAP_DB
from onnxvitq.numerics.fit import Search
from onnxvitq.precision.allocator import BitAllocator
from onnxvitq.precision.groups import starting_formats
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.promise import PromiseKeeper
from onnxvitq.report.records import to_dict
from onnxvitq.runtime.memory import give_back
from onnxvitq.runtime.session import Session

WORTH_DB_IN_FLOAT = {"mixed": 0.3, "auto": 1.0}  # of the output, that products with V in float must spare
EXACT = 1e-4  # of the largest output: how far a reparametrised float model may be off, by rounding
SEEN = 64  # samples at most, that judge which layers ruin the output
JUDGED = 16  # held-out samples at most, that a plan's output is judged on: each judgement runs all of them
REPORTED = 8  # held-out samples that a sensitivity report is measured on: it runs each of them once for every part
DECISIVE = 32.0  # weight of a class token's row in every mean (docs/methods.md, "Rows that decide")

Progress = Callable[[str, int, int | None], None]  # stage, done, total

logger = logging.getLogger(__name__)


def without_graph(loaded: LoadedModel) -> LoadedModel:
    """All else that is known of a model: once its channels are mapped, its own weights are only in the way."""
    return replace(loaded, graph=gs.Graph())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """What is to be written: the graph (channels mapped), what was found in it, and the plan. ``reference`` are the float
    outputs of the first ``feeds``; ``outcomes`` what each step proposed and what was kept; ``saturation`` which layers would
    saturate on calibration data, on processors without VNNI; ``sensitivity``, ``precision`` and ``quality`` the reports
    under these names, where they were asked for.
    """

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    feeds: CalibrationDataset
    reference: Sequence[FloatArray]
    outcomes: list[dict[str, Any]]
    saturation: dict[str, Any]
    sensitivity: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None


class Fitter:
    """Runs the steps on one model.

    Args:
        loaded: its graph is canonical.
        feeds: calibration samples.
        config: options.
        progress: called with (stage, done, total).
    """

    def __init__(self, loaded: LoadedModel, feeds: CalibrationDataset, config: QuantConfig, progress: Progress) -> None:
        self._loaded, self._feeds, self._config, self._progress = without_graph(loaded), feeds, config, progress
        self._measurer = Measurer(
            model=str(loaded.path),
            feeds=feeds,
            threads=config.threads,
            progress=lambda done, count: progress("calibrate", done, count),
        )
        if config.learns:
            require_torch()
        self.checkpoint: Path | None = None  # a folder for blocks that were learned
        self.decisions: Decisions | None = None  # on other data than these, where they judge a promise
        self._output = loaded.outputs[0]
        self._outcomes: list[dict[str, Any]] = []
        self._begun = 0.0  # when what is recorded next began
        self._steps = _steps(config)
        self._score: OutputDifference | None = None  # of the plan so far; None where nothing is judged
        self._best = -CAP_DB  # the highest SQNR of what was kept so far
        self._roles: dict[str, str] = {}
        self._in_float: dict[str, str] = {}  # layers that ruined the output, each with the reason
        self._sensitivity: dict[str, Any] | None = None
        self._precision: dict[str, Any] | None = None
        self._quality: dict[str, Any] | None = None
        self._take(loaded.graph)

    def _take(self, graph: gs.Graph) -> None:
        """Work on this graph from here on."""
        found = find_blocks(graph, str(self._loaded.path))
        # A Mul that was written between an activation and fc2 hides an MLP; a layer keeps the role it had without it.
        linears = tuple(replace(linear, role=self._roles.get(linear.name, linear.role)) for linear in found.linears)
        self._roles = {linear.name: linear.role for linear in linears}
        blockmap = replace(found, linears=linears)
        self._graph = graph
        self._layers = Layers(blockmap=blockmap, constants=constants(graph, _operand_names(blockmap)))
        plan = make_plan(blockmap, starting_formats(self._config, self._layers))
        self._plan = without_nodes(plan, self._in_float)
        self._positions = _token_weights(graph, blockmap)
        give_back()

    def calibrate(self, count: int | None, cache: CalibrationCache | None = None) -> None:
        """The first sweep: everything that the steps need of the graph as it is, and the float outputs.

        Args:
            count: of samples, where it is known.
            cache: of sweeps.
        """
        self._measurer = replace(self._measurer, cache=cache)
        wanted = scaling_requests(self._layers.blockmap) if any(map(self._config.runs, EXACT_STEPS)) else ()
        requests = (*wanted, *self._requests(), StatisticsRequest(tensor=self._output, kind="whole"))
        self._stats = self._measurer.measure(self._graph, requests, self._sampling, count)
        self._wholes = self._stats.wholes[self._output]

    def fit(self) -> Fitted:
        """All steps in order."""
        stages = self._stages()
        for done, stage in enumerate(stages, start=1):
            self._begun = time.perf_counter()
            stage()
            give_back()
            self._progress("fit", done, len(stages))
        return Fitted(
            graph=self._graph,
            layers=self._layers,
            plan=self._plan,
            feeds=self._feeds,
            reference=self._wholes[: self._feeds.kept],
            outcomes=self._outcomes,
            saturation=describe_saturation(
                self._layers, estimate_linears(self._layers, self._plan, self._stats, self._config.threads)
            ),
            sensitivity=self._sensitivity,
            precision=self._precision,
            quality=self._quality,
        )

    def _requests(self) -> tuple[StatisticsRequest, ...]:
        """What all steps need, each statistic once: one sweep serves them all."""
        requests = [request for step in self._steps for request in step.needs(self._layers, self._plan)]
        if self._config.mixed:
            requests += [
                StatisticsRequest(tensor=tensor, kind="rows") for tensor in linear_groups(self._layers, self._plan)
            ]
        return tuple(dict.fromkeys(requests))

    def _stages(self) -> list[Callable[[], None]]:
        """What the options ask for, in the order of the module's first lines."""
        config, fitted = self._config, self._steps[1:]
        asked: list[tuple[bool, Callable[[], None]]] = [
            (True, self._start),
            (config.runs("outer-linears") and not config.sized, self._choose_outer_linears),
            *((True, partial(self._change, steps)) for steps in rounds_of_changes(config)),
            (config.mixed, self._choose_bits),
            *((True, partial(self._run, step)) for step in fitted if not isinstance(step, CorrectBias)),
            (True, self._choose_formats),
            *((True, partial(self._run, step)) for step in fitted if isinstance(step, CorrectBias)),
            # Of weights as they are: those solved again make up for the others' errors.
            (config.sensitivity, self._report_sensitivity),
            (config.runs("weights"), self._rebuild),
            (config.learns, self._learn),
            (config.max_drop is not None, self._keep_quality),
        ]
        return [stage for wanted, stage in asked if wanted]

    def _record(self, entry: Mapping[str, Any]) -> None:
        """What the report says of a step; the agreement is that of what was kept so far."""
        agreement, now = None if self._score is None else self._score.agreement, time.perf_counter()
        self._outcomes.append({**entry, "agreement": agreement, "seconds": round(now - self._begun, 3)})
        self._begun = now

    def _start(self) -> None:
        """Min-max for every site, and the output with it."""
        self._plan, entry = self._minmax()
        self._keep(self._difference(self._plan) if self._config.judged else None)
        self._record(entry)

    def _minmax(self) -> tuple[QuantPlan, dict[str, Any]]:
        """Min-max for every site; products outside attentions that do harm stay float."""
        plan, outcome = self._steps[0].apply(self._layers, self._plan, self._stats)
        parts: tuple[PartOutcome, ...] = ()
        if self._layers.blockmap.products:
            plan, parts = drop_harmful_products(plan, self._layers, self._judge())
        return plan, {**asdict(outcome), "parts": [asdict(part) for part in parts]}

    def _difference(self, plan: QuantPlan) -> OutputDifference:
        return self._judge().difference(plan)

    def _change(self, steps: Sequence[StepName]) -> None:
        """Propose exact changes, and keep them where they do no harm."""
        proposal = propose(self._graph, self._layers, self._plan, self._stats, steps, self._config)
        entry: dict[str, Any] = {"name": "+".join(steps), "accepted": False, "before": self._sqnr, "after": None}
        entry |= {"kept": 0, "layers": len(proposal.parts), "parts": proposal.parts}
        if proposal.changed:
            entry |= self._try(proposal)
        self._record(entry)

    def _accept(self, plan: QuantPlan, doubt: float) -> dict[str, Any]:
        """Work on this plan from here on, if it does no harm; what the report says of it."""
        before, after = self._sqnr, self._difference(plan)
        accepted = self._does_no_harm(after, doubt)
        if accepted:
            self._plan = plan
            self._keep(after if self._config.judged else None)
        tried = {"accepted": accepted, "before": before, "after": round(after.sqnr_db, 3)}
        return tried if accepted else {**tried, "kept": 0}

    def _does_no_harm(self, after: OutputDifference | None, doubt: float) -> bool:
        """Whether the output is less than ``doubt`` dB below the best so far; also where nothing is judged."""
        return self._score is None or (after is not None and after.sqnr_db > self._best - doubt)

    def _keep(self, score: OutputDifference | None) -> None:
        """The score of what is worked on from here."""
        self._score = score
        self._best = max(self._best, -CAP_DB if score is None else score.sqnr_db)

    def _begin_at(self, score: OutputDifference | None) -> None:
        """The same, where what was before is nothing to compare with: other bits, other formats."""
        self._best = -CAP_DB
        self._keep(score)

    @property
    def _sqnr(self) -> float | None:
        return None if self._score is None else round(self._score.sqnr_db, 3)

    def _try(self, proposal: Proposal) -> dict[str, Any]:
        """Work on the changed graph from here on, if the float model stays what it is and the output is as good; what the
        report says of it.
        """
        before = (self._graph, self._layers, self._plan, self._positions)
        after: OutputDifference | None = None
        with scratch_folder() as folder:
            aside = folder / "statistics.npz"  # the next ones take as much room, half of all that a fit holds
            try:
                write_stats(aside, self._stats)
            except OSError as error:
                raise scratch_error(folder, error) from error
            self._stats = Statistics(count=self._stats.count)
            self._take(proposal.graph)
            if self._is_exact():
                self._follow(before[0], before[1].blockmap, proposal.change, aside)
                self._plan, _ = self._minmax()
                after = self._difference(self._plan) if self._config.judged else None
                if self._does_no_harm(after, DOUBT_DB):
                    self._keep(after)
                    return {"accepted": True, "kept": proposal.changed, "after": self._sqnr}
            self._graph, self._layers, self._plan, self._positions = before
            self._stats = read_stats(aside)
        return {"after": None if after is None else round(after.sqnr_db, 3)}

    def _follow(self, graph: gs.Graph, blockmap: BlockMap, change: Change | None, known: Path) -> None:
        """Statistics of the graph as it is now; those of the graph before the change are in a file."""
        wanted = (*scaling_requests(self._layers.blockmap), *self._requests())
        if change is None:
            self._stats = self._measurer.measure(self._graph, wanted, self._sampling, self._stats.count)
            return
        graphs, blockmaps = (graph, self._graph), (blockmap, self._layers.blockmap)
        self._stats = self._measurer.measure_changed(
            graphs, blockmaps, change, read_stats(known), (wanted, self._sampling)
        )

    @property
    def _sampling(self) -> Sampling:
        return Sampling(seed=self._config.seed, positions=self._positions)

    def _is_exact(self) -> bool:
        """Whether the graph still computes the float outputs of the first sample."""
        feed = next(iter(self._feeds))
        with scratch_folder() as folder:
            path = folder / "mapped.onnx"
            save_in_scratch(to_proto(self._graph.copy(), {}), path)
            value = Session(path, threads=self._config.threads).run(feed, [self._output])[0]
        reference = self._wholes[0]
        return bool(np.abs(value - reference).max() <= EXACT * np.abs(reference).max())

    def _choose_outer_linears(self) -> None:
        """Layers outside the blocks stay float where they ruin the output."""
        linears = outer_linears_of_8_bits(self._plan, self._layers.blockmap)
        if self._score is None or not linears:
            return
        # Nothing is fitted yet, so every sample may judge: a ruined output is one on which few samples decide otherwise.
        references = self._wholes[: self._feeds.kept][:SEEN]
        samples = Samples(feeds=list(islice(self._feeds, len(references))), references=references)
        known = self._plan.kept_float
        plan, parts = choose_outer_linears(self._plan, linears, self._judge(samples))
        if parts:
            self._accept_formats("outer-linears", plan, parts)
            self._in_float = {name: why for name, why in self._plan.kept_float.items() if name not in known}

    def _choose_formats(self) -> None:
        """What the options leave open: the form of the linears' inputs, and which products stay float."""
        open_inputs = self._config.input_form == "auto"
        if self._config.chooses_products:
            # What floats gain must not be hidden under an error of the inputs that is about to go.
            plan = most_accurate(self._plan) if open_inputs else self._plan
            worth = WORTH_DB_IN_FLOAT[self._config.product_form]
            self._accept_formats("attention", *choose_contexts(plan, self._layers.blockmap, self._judge(), worth))
        if open_inputs:
            self._accept_formats("activations", *choose_inputs(self._plan, self._judge()))

    def _accept_formats(self, name: str, plan: QuantPlan, parts: Sequence[PartOutcome]) -> None:
        entry: dict[str, Any] = {"name": name, "accepted": any(part.accepted for part in parts), "before": self._sqnr}
        if plan is not self._plan:
            self._plan = plan
            self._begin_at(self._difference(plan))
        entry |= {"after": self._sqnr, "kept": sum(part.accepted for part in parts), "layers": len(parts)}
        self._record({**entry, "parts": [asdict(part) for part in parts]})

    def _run(self, step: Step) -> None:
        """One step; of what it proposes, keep what does the output no harm."""
        proposed, outcome = step.apply(self._layers, self._plan, self._stats)
        if self._score is None:
            self._plan = proposed
            self._record({**asdict(outcome), "parts": []})
            return
        before, start, judge = self._sqnr, self._score, self._judge()

        seen: list[tuple[QuantPlan, OutputDifference]] = [(self._plan, start)]

        def tried(plan: QuantPlan) -> float:
            seen.append((plan, judge.difference(plan)))
            return seen[-1][1].sqnr_db

        self._plan, _, parts = accept_parts(self._plan, proposed, self._layers, tried, self._best)
        self._keep(next(difference for plan, difference in seen if plan is self._plan))
        entry = {**asdict(outcome), "accepted": any(part.accepted for part in parts)}
        entry |= {"before": before, "after": self._sqnr}
        self._record({**entry, "parts": [asdict(part) for part in parts]})

    def _rebuild(self) -> None:
        """Solve the weights again; all of them or none, as each is solved against those before it."""
        options = WeightReconstruction(positions=self._positions, threads=self._config.threads)
        with scratch_folder() as folder:
            aside = folder / "statistics.npz"  # not read in between, and this holds more than any other step
            try:
                write_stats(aside, replace(self._stats, lefts={}, rights={}))  # those are for the search alone
                self._stats = Statistics(count=self._stats.count)
                give_back()  # the graph before the last exact change, too
                plan, outcome = reconstruct_weights(self._graph, self._layers, self._plan, self._feeds, folder, options)
            except OSError as error:
                raise scratch_error(folder, error) from error
            self._stats = read_stats(aside)
        self._record({**asdict(outcome), **self._accept(plan, DOUBT_DB), "parts": []})

    def _learn(self) -> None:
        """Branches of low rank in closed form, then every block learned; each is kept if it does the output no harm."""
        from onnxvitq.fit.steps.block_learning.method import (  # torch is loaded only when asked for
            BRANCHES,
            RECONSTRUCTION,
            Learning,
        )

        for name, doubt in ((BRANCHES, 0.0), (RECONSTRUCTION, DOUBT_DB)):  # branches cost time: they have to gain
            with scratch_folder() as folder:
                learning = Learning(
                    graph=self._graph,
                    layers=self._layers,
                    feeds=self._feeds,
                    folder=folder,
                    positions=self._positions,
                    progress=self._progress,
                    checkpoint=self.checkpoint,
                )
                try:
                    plan, entry = learning.run(name, self._plan, self._config)
                except OSError as error:
                    raise scratch_error(folder, error) from error
            self._record({**entry, **self._accept(plan, doubt)})

    def _choose_bits(self) -> None:
        """Bits of each layer's weights within the budget."""
        network = PlannedNetwork(graph=self._graph, layers=self._layers, plan=self._plan, statistics=self._stats)
        decisions = None if self._config.sized else self._decisions()
        self._plan, precision = BitAllocator(network, self._held_out(), self._config, decisions).choose()
        self._precision = to_dict(precision)
        before = self._sqnr
        self._begin_at(self._difference(self._plan) if self._config.judged else None)
        count = len(precision.chosen.bits)
        entry = {
            "name": "bits",
            "accepted": True,
            "before": before,
            "after": self._sqnr,
            "kept": count,
            "layers": count,
        }
        self._record({**entry, "parts": []})

    def _keep_quality(self) -> None:
        """As many layers with more bits or in float as the promise needs."""
        network = PlannedNetwork(graph=self._graph, layers=self._layers, plan=self._plan, statistics=self._stats)
        keeper = PromiseKeeper(network, self._held_out(), self._decisions(), self._config)
        self._plan, quality = keeper.keep()
        self._quality = to_dict(quality)

    def _decisions(self) -> Decisions:
        """What a promise is judged on: other data, or samples held out of these."""
        samples = self._held_out()
        return self.decisions or held_out_decisions(samples.feeds, samples.references, self._wholes)

    def _report_sensitivity(self) -> None:
        """The output's error with one part quantized, for every part."""
        samples = self._held_out(REPORTED)
        probe = OutputProbe(self._graph, self._layers, self._plan, samples, self._config.threads)
        parts = [
            {
                **asdict(one.part),
                "sqnr_db": round(one.sqnr_db, 2),
                "agreement": one.agreement,
                "share": round(one.share, 5),
            }
            for one in one_at_a_time(self._layers, self._plan, probe)
        ]
        for part in parts:
            part["tensors"] = list(part["tensors"])
        described = {"output": self._output, "outputs": len(self._loaded.outputs), "samples": len(samples.feeds)}
        self._sensitivity = {**described, "parts": parts}

    def _held_out(self, most: int | None = None) -> Samples:
        """Held-out samples with their float outputs; ``most`` of them at most, spread evenly: folders are sorted."""
        held = [(feed, self._wholes[i]) for i, feed in self._feeds.held_out() if i < len(self._wholes)]
        if most is not None and most < len(held):
            held = [held[place * len(held) // most] for place in range(most)]
        return Samples(feeds=[feed for feed, _ in held], references=[reference for _, reference in held])

    def _judge(self, samples: Samples | None = None) -> OutputEvaluator:
        """On these samples, or on some of those held out."""
        samples = samples or self._held_out(JUDGED)
        return OutputEvaluator(
            graph=self._graph,
            layers=self._layers,
            feeds=samples.feeds,
            references=samples.references,
            threads=self._config.threads,
        )


def _token_weights(graph: gs.Graph, blockmap: BlockMap) -> FloatArray | None:
    """How much each token's row counts: more where the output picks single tokens; None where all count alike."""
    decisive = decisive_positions(graph, blockmap)
    tokens = max((a.tokens or 0 for a in blockmap.attentions), default=0)
    if not decisive or max(decisive) >= tokens:
        return None
    weights = np.ones(tokens, np.float32)
    weights[list(decisive)] = DECISIVE
    return weights


def _steps(config: QuantConfig) -> list[Step]:
    steps: list[Step] = [MinMaxRanges()]
    if config.runs("scales"):
        candidates, rounds = config.search
        search = Search(candidates=candidates, rounds=rounds)
        steps.append(SearchScales(objective=config.objective, search=search, workers=config.threads))
    if config.runs("bias"):
        steps.append(CorrectBias(workers=config.threads))
    return steps


def _operand_names(blockmap: BlockMap) -> set[str]:
    """Weights, biases, and the operands of products, a few of which are constants."""
    linears = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    return linears | {tensor for _, pair in products(blockmap) for tensor in pair}
