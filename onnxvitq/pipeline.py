"""The order of things: from a float model and calibration data to an integer model and its report.

``quantize`` is readable in one screen; the other functions are what the sub-commands do.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.blockmap import BlockMap
from onnxvitq.blocks.find import find_blocks
from onnxvitq.config import QuantConfig
from onnxvitq.data.arrays import static_batch
from onnxvitq.data.config_files import find_config_file
from onnxvitq.data.images import SUFFIXES
from onnxvitq.data.labelled import Labelled, open_labelled
from onnxvitq.data.preprocess import PREPROCESSING_KEY, Preprocessing, resolve_preprocessing
from onnxvitq.data.source import Source, open_source
from onnxvitq.errors import DataError, InvalidGraphError
from onnxvitq.evaluation import report as reports
from onnxvitq.evaluation.audit import Audit, audit
from onnxvitq.evaluation.bench import FREE_SIDE, Timing, bench, random_feed
from onnxvitq.evaluation.compare import compare
from onnxvitq.evaluation.judge import OutputJudge
from onnxvitq.evaluation.labelled import Evaluation, evaluate
from onnxvitq.export.exporter import ExportOptions, ExportResult, export_model
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.io import (
    LoadedModel,
    atomic_file,
    check_written,
    constants,
    load_model,
    refuse_output,
    save_for_session,
    save_model,
    to_proto,
    with_outputs,
)
from onnxvitq.graph.scratch import scratch_error, scratch_folder
from onnxvitq.graph.shapes import infer_shapes, unknown_tensors
from onnxvitq.numerics.fit import Search
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.rewrite.qdq import apply_plan, products
from onnxvitq.runtime.session import Session
from onnxvitq.runtime.shapes import observe_shapes
from onnxvitq.runtime.sweep import sweep
from onnxvitq.spec import InputSpec, StatRequest, Stats
from onnxvitq.steps.accept import accept_parts, drop_harmful_products
from onnxvitq.steps.bias import CorrectBias
from onnxvitq.steps.policy import make_plan
from onnxvitq.steps.ranges import MinMaxRanges
from onnxvitq.steps.scales import SearchScales
from onnxvitq.steps.step import Step, is_held_out

logger = logging.getLogger(__name__)

RECIPE_KEY = "onnxvitq.recipe"
HELD_OUT_BYTES = 8 * 2**20  # of held-out inputs kept for the acceptance of steps
KEPT_FEEDS = 16  # of an iterable that cannot be relied on to give the same again, for the comparison

Progress = Callable[[str, int, int | None], None]  # stage, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessOptions:
    """What the user said about preprocessing: single flags, and a configuration file."""

    flags: Mapping[str, object] = field(default_factory=dict)
    config_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a quantization returns; the model itself is in the file. ``report`` has the documented keys."""

    output: Path
    plan: QuantPlan
    audit: Audit
    report: Mapping[str, Any]


def quantize(
    model: str | Path,
    data: str | Path | Iterable[Any],
    output: str | Path,
    config: QuantConfig | None = None,
    *,
    preprocess: PreprocessOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Quantize ``model`` with ``data`` and write ``output``.

    Args:
        model: a float ONNX file.
        data: a folder of images, an image, an .npz or .npy file, or an iterable of feeds.
        output: the file to write; replaced in one step at the very end, or not at all.
        config: options; the defaults when None.
        preprocess: how images become inputs; resolved from the model and its files where not said.
        progress: called with (stage, done, total); last, with ("finish", 1, 1), when only the output's place is left to
            be taken.

    Raises:
        OnnxVitqError: the model, the data or the options cannot be used; nothing was written.
    """
    model, output, config = Path(model), Path(output), config or QuantConfig()
    watch, progress = _Stopwatch(), progress or _silent
    with watch("load"):
        refuse_output(output, model)
        loaded = load_model(model)
        for file in loaded.files:
            refuse_output(output, file)
        source, preprocessing, origin = _open(loaded, data, config, preprocess or PreprocessOptions())
        graph = loaded.graph
        _canonicalise(loaded, config.threads)
        blockmap = find_blocks(graph, str(model))
        problem = Problem(blockmap=blockmap, constants=constants(graph, _operand_names(blockmap)))
        plan = make_plan(blockmap, config)
    steps = _steps(config)
    requests = (*_requests(steps, problem, plan), StatRequest(tensor=loaded.outputs[0], kind="whole"))
    feeds = _Replay(source, again=_gives_the_same_again(data))
    with watch("calibrate"):
        count = None if source.count is None else math.ceil(source.count / (static_batch(loaded.inputs) or 1))
        stats = _measure(loaded, feeds, requests, config, _stage(progress, "calibrate", count))
    with watch("fit"):
        plan, outcomes = _fit(loaded, problem, (plan, steps, stats), feeds, config, progress)
    reference = stats.wholes[loaded.outputs[0]][: feeds.kept]
    del stats
    with watch("write"):
        metadata = {**loaded.metadata, **_recipe(loaded, config, source, preprocessing)}
        proto = to_proto(apply_plan(graph, problem, plan), metadata)
        check_written(proto, str(output))
    sizes = {"float": loaded.size / 1e6}
    del graph, problem, loaded
    with atomic_file(output) as temporary:
        with watch("write"):
            sizes["quantized"] = save_model(proto, temporary) / 1e6
            del proto
        with watch("audit"):
            audited = audit(temporary, blockmap, plan, config.threads)
        with watch("compare"):
            compared = compare(
                (model, temporary),
                feeds,
                reference,
                threads=config.threads,
                progress=_stage(progress, "compare", len(reference)),
            )
        progress("finish", 1, 1)
    report = {
        "report_version": reports.REPORT_VERSION,
        "model": str(model),
        "output": str(output),
        **reports.describe_graph(blockmap),
        **reports.describe_audit(audited),
        "compare": reports.describe_comparison(compared),
        "size_mb": {name: round(value, 4) for name, value in sizes.items()},
        "seconds": watch.report(),
        "steps": outcomes,
        "calibration": _describe_data(source, preprocessing, origin),
        "config": config.to_dict(),
        "environment": reports.environment(config.threads),
    }
    return Result(output=output, plan=plan, audit=audited, report=report)


def _canonicalise(loaded: LoadedModel, threads: int) -> dict[str, int]:
    """Bring the graph to canonical form; where nothing tells the shape of a tensor, two runs on noise do."""
    graph = loaded.graph
    edits = canonicalise(graph)
    unknown = unknown_tensors(graph)
    if not unknown:
        return edits
    feeds = [random_feed(loaded.inputs, batch, seed=0, side=FREE_SIDE * batch) for batch in (1, 2)]
    with scratch_folder() as folder:
        probe = folder / "probe.onnx"
        try:
            save_for_session(to_proto(with_outputs(graph, unknown), {}), probe)
        except OSError as error:
            raise scratch_error(folder, error) from error
        try:
            observed = observe_shapes(probe, feeds[0], feeds[1], threads)
        except InvalidGraphError as error:  # noise of that size is no input for it: the shapes stay unknown
            logger.warning("shapes of %d tensors stay unknown: %s", len(unknown), error.problem)
            return edits
    tensors = graph.tensors()
    for name, (shape, dtype) in observed.items():
        tensors[name].shape, tensors[name].dtype = shape, dtype
    infer_shapes(graph)
    more = canonicalise(graph)
    return {name: count + more[name] for name, count in edits.items()}


def _steps(config: QuantConfig) -> list[Step]:
    steps: list[Step] = [MinMaxRanges()]
    if config.objective != "minmax":
        search = Search(candidates=config.candidates, rounds=config.rounds)
        steps.append(SearchScales(objective=config.objective, search=search, workers=config.threads))
    if config.bias_correction:
        steps.append(CorrectBias(workers=config.threads))
    return steps


def _fit(
    loaded: LoadedModel,
    problem: Problem,
    work: tuple[QuantPlan, Sequence[Step], Stats],
    feeds: "_Replay",
    config: QuantConfig,
    progress: Progress,
) -> tuple[QuantPlan, list[dict[str, Any]]]:
    """Run the steps in order; of each after the first, keep what the model's output gains from on held-out samples."""
    plan, steps, stats = work
    wholes = stats.wholes[loaded.outputs[0]]
    held = [(feed, wholes[index]) for index, feed in feeds.held_out() if index < len(wholes)]
    judge = OutputJudge(
        graph=loaded.graph,
        problem=problem,
        feeds=[feed for feed, _ in held],
        references=[reference for _, reference in held],
        threads=config.threads,
    )
    outcomes: list[dict[str, Any]] = []
    score: float | None = None
    for number, step in enumerate(steps):
        proposed, outcome = step.apply(problem, plan, stats)
        if number == 0:
            plan, dropped = (
                drop_harmful_products(proposed, problem, judge) if problem.blockmap.products else (proposed, ())
            )
            entry = {**asdict(outcome), "parts": [asdict(part) for part in dropped]}
        elif not config.judged:
            plan, entry = proposed, {**asdict(outcome), "parts": []}
        else:
            before = judge(plan) if score is None else score
            plan, score, parts = accept_parts(plan, proposed, problem, judge, before)
            kept = any(part.accepted for part in parts)
            entry = {**asdict(outcome), "accepted": kept, "before": round(before, 3), "after": round(score, 3)}
            entry["parts"] = [asdict(part) for part in parts]
        outcomes.append(entry)
        progress("fit", number + 1, len(steps))
    return plan, outcomes


def _requests(steps: Sequence[Step], problem: Problem, plan: QuantPlan) -> tuple[StatRequest, ...]:
    """What all steps need, each statistic once: one sweep serves them all."""
    return tuple(dict.fromkeys(request for step in steps for request in step.needs(problem, plan)))


def _operand_names(blockmap: BlockMap) -> set[str]:
    """Weights, biases, and the operands of products, a few of which are constants."""
    linears = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    return linears | {tensor for _, pair in products(blockmap) for tensor in pair}


def _measure(
    loaded: LoadedModel,
    feeds: Iterable[Mapping[str, np.ndarray]],
    requests: Sequence[StatRequest],
    config: QuantConfig,
    progress: Callable[[int], None],
) -> Stats:
    """One sweep over the float graph, which onnxruntime reads from a temporary folder."""
    with scratch_folder() as folder:
        observed = folder / "observed.onnx"
        try:  # the message is not kept: it would hold every weight once more
            save_for_session(
                to_proto(with_outputs(loaded.graph, [request.tensor for request in requests]), {}), observed
            )
        except OSError as error:
            raise scratch_error(folder, error) from error
        try:
            return sweep(observed, feeds, requests, seed=config.seed, threads=config.threads, progress=progress)
        except InvalidGraphError as error:  # it names the temporary file
            raise InvalidGraphError(str(loaded.path), error.problem, error.hint) from error


def _open(
    loaded: LoadedModel, data: str | Path | Iterable[Any], config: QuantConfig, options: PreprocessOptions
) -> tuple[Source, Preprocessing | None, str]:
    """The calibration data, with the preprocessing it needs and where that came from."""
    beside = find_config_file(loaded.path)
    preprocessing, origin = _preprocessing(loaded.inputs, loaded.metadata, options, beside, data)
    return open_source(data, loaded.inputs, preprocessing, limit=config.num_samples), preprocessing, origin


def _preprocessing(
    inputs: Sequence[InputSpec],
    metadata: Mapping[str, str],
    options: PreprocessOptions,
    beside: Path | None,
    data: object,
) -> tuple[Preprocessing | None, str]:
    """What is done to images; None where the model takes none, or where nothing says it and ``data`` may need none."""
    images = [spec for spec in inputs if len(spec.shape) == 4]
    if len(inputs) != 1 or not images:
        return None, "the model does not take one image"
    stated = any(value is not None for value in options.flags.values()) or options.config_file is not None
    config_file = options.config_file or beside
    try:
        return resolve_preprocessing(images[0], flags=options.flags, config_file=config_file, metadata=metadata)
    except DataError:
        if stated or _holds_images(data):
            raise
        return None, "unknown"


def _holds_images(data: object) -> bool:
    """Whether ``data`` is a folder or an image file: arrays may be ready for the model as they are."""
    if not isinstance(data, str | os.PathLike):
        return False
    path = Path(data)
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def _gives_the_same_again(data: object) -> bool:
    """Whether a second pass over ``data`` gives what the first gave: a loader that shuffles can be read again, too."""
    return isinstance(data, str | os.PathLike | np.ndarray | Mapping | list | tuple)


class _Replay:
    """Feeds of a source, again and again; of one that may not give the same ``again``, the first ``kept``."""

    def __init__(self, source: Source, *, again: bool) -> None:
        self.kept = None if again else KEPT_FEEDS
        self._source = source
        self._first: list[Mapping[str, np.ndarray]] = []
        self._held: list[tuple[int, Mapping[str, np.ndarray]]] = []
        self._room = HELD_OUT_BYTES
        self._read = False

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        if self._read:
            yield from self._source if self.kept is None else self._first
            return
        self._read = True
        for index, feed in enumerate(self._source):
            if self.kept is not None and len(self._first) < self.kept:
                self._first.append(feed)
            self._hold(index, feed)
            yield feed

    def _hold(self, index: int, feed: Mapping[str, np.ndarray]) -> None:
        if index and not is_held_out(index):
            return
        self._room -= sum(value.nbytes for value in feed.values())
        if len(self._held) < 2 or self._room >= 0:
            self._held.append((index, feed))

    def held_out(self) -> list[tuple[int, Mapping[str, np.ndarray]]]:
        """(number, feed) of held-out samples seen in the first pass; of the first sample when there was no other."""
        return self._held[1:] or self._held


class _Stopwatch:
    """Seconds by stage, added up over several visits."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._taken: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._taken[stage] = self._taken.get(stage, 0.0) + time.perf_counter() - start

    def report(self) -> dict[str, float]:
        total = time.perf_counter() - self._start
        return {name: round(value, 3) for name, value in (*self._taken.items(), ("total", total))}


def _silent(stage: str, done: int, total: int | None) -> None:
    del stage, done, total


def _stage(progress: Progress, stage: str, total: int | None) -> Callable[[int], None]:
    return lambda done: progress(stage, done, total)


def _recipe(
    loaded: LoadedModel, config: QuantConfig, source: Source, preprocessing: Preprocessing | None
) -> dict[str, str]:
    """Metadata of the written model: enough to make it again. No time and no path: same input, same bytes."""
    try:
        tool = version("onnxvitq")
    except PackageNotFoundError:
        tool = "unknown"
    recipe = {
        "onnxvitq": tool,
        "config": config.to_dict(),
        "model_sha256": _file_digest(loaded.path),
        "data_sha256": source.digest,
        "samples": source.count,
    }
    entries = {RECIPE_KEY: json.dumps(recipe, sort_keys=True)}
    if preprocessing is not None:
        entries[PREPROCESSING_KEY] = json.dumps(preprocessing.to_dict(), sort_keys=True)
    return entries


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe_data(source: Source, preprocessing: Preprocessing | None, origin: str) -> dict[str, Any]:
    return {
        "source": source.description,
        "samples": source.count,
        "skipped": _describe_skipped(source),
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "described": "" if preprocessing is None else preprocessing.describe(),
        "preprocessing_from": origin,
    }


def _describe_skipped(source: Source | Labelled) -> list[dict[str, str]]:
    return [{"file": name, "reason": reason} for name, reason in source.skipped]


def inspect(model: str | Path) -> tuple[dict[str, Any], BlockMap]:
    """What is found in a model, under the report's names, and the full map.

    Raises:
        OnnxVitqError: the model cannot be read, or has no attention.
    """
    loaded = load_model(Path(model))
    graph = loaded.graph
    edits = _canonicalise(loaded, threads=0)
    blockmap = find_blocks(graph, str(model))
    described = {
        "model": str(model),
        **reports.describe_graph(blockmap),
        "inputs": [asdict(spec) for spec in loaded.inputs],
        "outputs": list(loaded.outputs),
        "canonical_edits": {name: count for name, count in edits.items() if count},
        "map": blockmap.to_dict(),
    }
    return described, blockmap


def evaluate_models(
    models: tuple[Path, Path], data: Path, preprocess: PreprocessOptions, *, batch: int, threads: int
) -> tuple[Evaluation, list[dict[str, str]]]:
    """Top-1 and agreement of (float, quantized) on labelled data, and the files that were skipped.

    The preprocessing that the quantized model carries is used, unless the options say otherwise; a file beside the
    float model is asked only where the models say nothing.
    """
    reference, described = describe_inputs(models[0]), describe_inputs(models[1])
    metadata = {**reference[1], **described[1]}
    beside = None if PREPROCESSING_KEY in metadata else find_config_file(models[0])
    preprocessing, _ = _preprocessing(reference[0], metadata, preprocess, beside, data)
    labelled = open_labelled(data, reference[0], preprocessing, batch=batch)
    return evaluate(models, labelled, threads=threads), _describe_skipped(labelled)


def describe_inputs(model: Path) -> tuple[tuple[InputSpec, ...], Mapping[str, str]]:
    """Inputs and metadata of any ONNX model that onnxruntime can load, quantized or not."""
    session = Session(model, level="disabled", threads=1)
    return session.input_specs, session.metadata


def bench_models(models: Sequence[Path], *, batch: int, threads: int, runs: int, seed: int) -> list[Timing]:
    """Interleaved latency of models on random inputs."""
    feeds = [random_feed(describe_inputs(model)[0], batch, seed) for model in models]
    return bench(models, feeds, threads=threads, runs=runs)


def export(spec: str, output: Path, options: ExportOptions) -> ExportResult:
    """Export a torch module, its outputs checked in onnxruntime."""
    return export_model(spec, output, options, run=_run_file)


def _run_file(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return Session(path, level="disabled").run(feeds)
