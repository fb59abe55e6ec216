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
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blocks.find import find_blocks
from onnxvitq.calibration.cache import CalibrationCache, open_cache
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import DataError
from onnxvitq.core.files import refuse_output
from onnxvitq.core.handover import Handover
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.arrays import static_batch
from onnxvitq.data.config_files import find_config_file
from onnxvitq.data.images import SUFFIXES
from onnxvitq.data.labelled import Labelled, open_labelled
from onnxvitq.data.preprocess import PREPROCESSING_KEY, Preprocessing, resolve_preprocessing
from onnxvitq.data.source import Source, open_source
from onnxvitq.evaluation.bench import Loading, Timing, bench, footprints, profile
from onnxvitq.evaluation.compare import COMPARED, compare
from onnxvitq.evaluation.decisions import Decisions, open_decisions, read_decisions, refuse_calibration_data
from onnxvitq.evaluation.labelled import Evaluation, evaluate
from onnxvitq.export.exporter import ExportOptions, ExportResult, export_model
from onnxvitq.fit.order import ORDER, steps_of
from onnxvitq.fit.runner import fit
from onnxvitq.fit.start import calibrate
from onnxvitq.fit.state import FitContext, Progress, silent
from onnxvitq.fit.step import Step
from onnxvitq.fit.steps.block_learning.checkpoint import remove_checkpoints
from onnxvitq.graph.checking import check_written
from onnxvitq.graph.reading import LoadedModel, load_model
from onnxvitq.graph.writing import atomic_model, data_beside, save_model, to_proto
from onnxvitq.report import build as reports
from onnxvitq.report.records import to_dict
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.memory import give_back
from onnxvitq.runtime.noise import random_feed
from onnxvitq.runtime.profile import OperatorTime
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu.kernels import Audit
from onnxvitq.targets.registry import target_of
from onnxvitq.targets.target import Target

logger = logging.getLogger(__name__)

RECIPE_KEY = "onnxvitq.recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessOptions:
    """What the user said about preprocessing: single flags, and a configuration file."""

    flags: Mapping[str, object] = field(default_factory=dict)
    config_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a quantization returns; the model itself is in the file. ``report`` has the documented keys.

    ``plan`` names tensors of the canonical graph after its channels were mapped, not of the user's graph.
    """

    output: Path
    plan: QuantPlan
    audit: Audit
    report: Mapping[str, Any]


def quantize(  # noqa: PLR0913  three are needed, the others are named
    model: str | Path,
    data: str | Path | Iterable[Any],
    output: str | Path,
    config: QuantConfig | None = None,
    *,
    preprocess: PreprocessOptions | None = None,
    progress: Progress | None = None,
    target: Target | None = None,
    steps: Sequence[Step] = ORDER,
) -> Result:
    """Quantize ``model`` with ``data`` and write ``output``.

    With method "aiqvit" the blocks that are learned are kept in a folder beside the output, ``<output>.learned``, until it is
    written: the same call goes on from there when it was interrupted.

    Args:
        model: a float ONNX file.
        data: a folder of images, an image, an .npz or .npy file, or an iterable of feeds.
        output: the file to write; replaced in one step at the very end, or not at all.
        config: options; the defaults when None.
        preprocess: how images become inputs; resolved from the model and its files where not said.
        progress: called with (stage, done, total); last, with ("finish", 1, 1), when only the output's place is left to
            be taken.
        target: a runtime to write for; the one that the options name when None.
        steps: of the fit, in order; those run that the options ask for. ``fit.order.ORDER`` with steps of one's own among
            them adds these.

    Raises:
        OnnxVitqError: the model, the data or the options cannot be used; nothing was written.
    """
    model, output, config = Path(model), Path(output), config or QuantConfig()
    watch, progress = _Stopwatch(), progress or silent
    with watch("load"):
        refuse_output(output, model)
        loaded = load_model(model, batch=config.static_batch)
        for file in loaded.files:
            refuse_output(output, file)
        source, preprocessing, origin = _open(loaded, data, config, preprocess or PreprocessOptions())
        judge = None if config.judged_on is None else _open_judge(Path(config.judged_on), loaded, data, preprocessing)
        bring_to_canonical_form(loaded, config.threads)
        feeds = CalibrationDataset(source, again=_gives_the_same_again(data), keep_digests=judge is not None)
        graph, loaded = Handover(loaded.graph), without_graph(loaded)
        checkpoint = output.with_name(f"{output.name}.learned")
    with watch("calibrate"):
        cache = None if config.cache is None else _open_cache(config.cache, feeds, source, preprocessing)
        count = None if source.count is None else math.ceil(source.count / (static_batch(loaded.inputs) or 1))
        context = replace(
            FitContext.of(loaded, feeds, config, progress, cache),
            checkpoint=checkpoint,
            target=target or target_of(config),
        )
        steps = steps_of(config, steps)
        state, context = calibrate(graph, context, steps, count)
    if judge is not None:
        with watch("judge"):
            context = replace(context, decisions=read_decisions(model, judge, feeds.digests, config.threads))
    with watch("fit"):
        fitted = fit(state, context, steps)
        decisions, target = context.decisions, context.target
        del context  # it holds all float outputs
        give_back()
    with watch("write"):
        metadata = {**loaded.metadata, **_recipe(loaded, config, source, preprocessing, decisions)}
        proto = to_proto(target.write(fitted.graph, fitted.layers, fitted.plan, packed=True), metadata, to_load=True)
        data_file = data_beside(proto, output, asked=config.external_data)
    sizes = {"float": loaded.size / 1e6}
    blockmap, plan = fitted.layers.blockmap, fitted.plan
    reference, records, saturation = fitted.reference, fitted.steps, fitted.saturation
    bits = reports.describe_bits(blockmap, plan, proto)
    sections = fitted.sections
    del fitted, loaded
    with atomic_model(output) as temporary:
        with watch("write"):
            sizes["quantized"] = save_model(proto, temporary, data_file) / 1e6
            check_written(temporary, str(output))
            del proto
            give_back()
        with watch("audit"):
            audited = target.audit(temporary, blockmap, plan, config.threads)
        with watch("compare"):
            compared = compare(
                (model, temporary),
                feeds,
                reference,
                threads=config.threads,
                progress=_stage(progress, "compare", min(len(reference), COMPARED)),
            )
        progress("finish", 1, 1)
    remove_checkpoints(checkpoint)
    report = {
        "report_version": reports.REPORT_VERSION,
        "model": str(model),
        "output": str(output),
        "target": target.name,
        **reports.describe_graph(blockmap),
        **reports.describe_audit(audited),
        "bits": bits,
        "saturation": saturation,
        "compare": reports.describe_comparison(compared),
        "size_mb": {name: round(value, 4) for name, value in sizes.items()},
        "seconds": watch.report(),
        "steps": to_dict(records),
        **{section.key: to_dict(section.content) for section in sections},
        "calibration": _describe_data(source, preprocessing, origin),
        "config": config.to_dict(),
        "environment": reports.environment(config.threads),
    }
    return Result(output=output, plan=plan, audit=audited, report=report)


def without_graph(loaded: LoadedModel) -> LoadedModel:
    """All else that is known of a model: once its channels are scaled, its own weights are only in the way."""
    return replace(loaded, graph=gs.Graph())


def _open(
    loaded: LoadedModel, data: str | Path | Iterable[Any], config: QuantConfig, options: PreprocessOptions
) -> tuple[Source, Preprocessing | None, str]:
    """The calibration data, with the preprocessing it needs and where that came from."""
    beside = find_config_file(loaded.path)
    preprocessing, origin = _preprocessing(loaded.inputs, loaded.metadata, options, beside, data)
    return open_source(data, loaded.inputs, preprocessing, limit=config.num_samples), preprocessing, origin


def _open_judge(
    path: Path, loaded: LoadedModel, calibration: object, preprocessing: Preprocessing | None
) -> Labelled | Source:
    """The data that judge a promise, prepared as those of calibration are."""
    refuse_calibration_data(path, calibration)
    return open_decisions(path, loaded.inputs, preprocessing)


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


def _stage(progress: Progress, stage: str, total: int | None) -> Callable[[int], None]:
    return lambda done: progress(stage, done, total)


def _recipe(
    loaded: LoadedModel,
    config: QuantConfig,
    source: Source,
    preprocessing: Preprocessing | None,
    decisions: Decisions | None,
) -> dict[str, str]:
    """Metadata of the written model: enough to make it again. No time and no path: same input, same bytes."""
    try:
        tool = version("onnxvitq")
    except PackageNotFoundError:
        tool = "unknown"
    recipe = {
        "onnxvitq": tool,
        "config": {**config.to_dict(), "cache": None, "judged_on": None},
        "model_sha256": _file_digest(loaded.path),
        "data_sha256": source.digest,
        "samples": source.count,
    }
    if decisions is not None:
        recipe["judge_sha256"] = decisions.digest
    entries = {RECIPE_KEY: json.dumps(recipe, sort_keys=True)}
    if preprocessing is not None:
        entries[PREPROCESSING_KEY] = json.dumps(preprocessing.to_dict(), sort_keys=True)
    return entries


def _open_cache(
    folder: str, feeds: CalibrationDataset, source: Source, preprocessing: Preprocessing | None
) -> CalibrationCache | None:
    """A cache for these samples; None, with a warning, where nothing says that another run would see the same.

    Reads the samples once: what is held out of them is kept even where no sweep runs, and the digest is of what was read.
    """
    if feeds.kept is None:
        for _ in feeds:
            pass
    if feeds.kept is not None or not source.digest:
        logger.warning("calibration cache: not used, %s cannot be told from others", source.description)
        return None
    described = None if preprocessing is None else preprocessing.to_dict()
    return open_cache(folder, {"samples": source.digest, "preprocessing": described})


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
    edits = bring_to_canonical_form(loaded, threads=0)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """timings: number of threads -> one a model. operators, by model: operator -> its time; empty where not asked for."""

    timings: Mapping[int, list[Timing]]
    footprints: list[Loading]
    operators: list[dict[str, OperatorTime]]


def bench_models(
    models: Sequence[Path], *, batch: int, threads: Sequence[int], runs: int, seed: int, profiled: bool = False
) -> Benchmark:
    """Models on random inputs: interleaved latency, load and memory in a fresh process, time by operator.

    The last two with the first number of threads.
    """
    feeds = [random_feed(describe_inputs(model)[0], batch, seed) for model in models]
    return Benchmark(
        timings={count: bench(models, feeds, threads=count, runs=runs) for count in threads},
        footprints=footprints(models, feeds, threads=threads[0]),
        operators=profile(models, feeds, threads=threads[0], runs=runs) if profiled else [],
    )


def export(spec: str, output: Path, options: ExportOptions) -> ExportResult:
    """Export a torch module, its outputs checked in onnxruntime."""
    return export_model(spec, output, options, run=_run_file)


def _run_file(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return Session(path, level="disabled").run(feeds)
