"""What a user calls: ``quantize``, ``inspect``, ``evaluate``, ``bench``, ``export``. The command line is made of the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.config_files import find_config_file
from onnxvitq.data.labelled import Labelled, open_labelled
from onnxvitq.data.opening import OpenedData, PreprocessOptions, preprocessing_for
from onnxvitq.data.preprocess import PREPROCESSING_KEY
from onnxvitq.data.source import Source
from onnxvitq.evaluation.bench import Loading, Timing, footprints, profile, time_models
from onnxvitq.evaluation.compare import COMPARED, compare
from onnxvitq.evaluation.labelled import evaluate_labelled
from onnxvitq.evaluation.tasks.choose import choose_task
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.export.exporter import ExportOptions, ExportResult, export_model
from onnxvitq.fit.job import FitToWrite, Job, checkpoint_folder, fit_and_lay_out
from onnxvitq.fit.order import ORDER, steps_of
from onnxvitq.fit.state import Progress, silent
from onnxvitq.fit.step import Step
from onnxvitq.fit.steps.block_learning.checkpoint import remove_checkpoints
from onnxvitq.graph.checking import check_written
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import atomic_model, data_beside, save_model
from onnxvitq.report.build import bits_report, environment, found_graph, other_sections, section
from onnxvitq.report.model_records import Audit, BitsReport, EvaluationReport, InspectionReport, OutputComparison
from onnxvitq.report.records import PrecisionReport, PromiseReport, SensitivityReport, SkippedFile
from onnxvitq.report.report import CalibrationReport, Report, Sizes
from onnxvitq.report.stopwatch import Stopwatch
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.memory import give_back
from onnxvitq.runtime.noise import random_feed
from onnxvitq.runtime.profile import OperatorTime
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import target_of
from onnxvitq.targets.target import Target

__all__ = [
    "Benchmark",
    "Inspection",
    "PreprocessOptions",
    "Result",
    "bench",
    "evaluate",
    "export",
    "inspect",
    "quantize",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a quantization returns; the model itself is in the file.

    Attributes:
        output: path of the written model.
        plan: formats and parameters; it names tensors of the canonical graph after exact changes, not of the user's graph.
        report: everything that is said of it; ``report.to_dict()`` has the documented keys of the JSON report.
    """

    output: Path
    plan: QuantPlan
    report: Report

    @property
    def audit(self) -> Audit:
        """Which kernels the written model runs on."""
        return self.report.audit


def quantize(  # noqa: PLR0913  three are needed, the others are named
    model: str | Path,
    data: str | Path | Iterable[Any],
    output: str | Path,
    config: QuantConfig | None = None,
    *,
    preprocess: PreprocessOptions | None = None,
    task: Task | None = None,
    progress: Progress | None = None,
    target: Target | None = None,
    steps: Sequence[Step] = ORDER,
) -> Result:
    """Quantize ``model`` with ``data`` and write ``output``.

    With method "aiqvit" learned blocks are kept in a folder beside the output, ``<output>.learned``, until it is written: the
    same call goes on from there when it was interrupted.

    Args:
        model: a float ONNX file.
        data: a folder of images, an image, an .npz or .npy file, or an iterable of feeds.
        output: the file to write; replaced in one step at the very end, or not at all.
        config: options; the defaults when None.
        preprocess: how images become inputs; resolved from the model and its files where not said.
        progress: called with (stage, done, total); last, when only the output's place is left to be taken, with "finish".
        target: a runtime to write for; the one that the options name when None.
        task: what the model's outputs mean; chosen by the shape of the first output when None.
        steps: of the fit, in order; those run that the options ask for. One's own stand among those of ``fit.order.ORDER``.

    Raises:
        OnnxVitqError: the model, the data or the options cannot be used; nothing was written.
    """
    config = config or QuantConfig()
    job = Job(
        model=Path(model),
        output=Path(output),
        config=config,
        preprocess=preprocess or PreprocessOptions(),
        task=task,
        steps=steps_of(config, steps),
        target=target or target_of(config),
        progress=progress or silent,
        watch=Stopwatch(),
    )
    proto, fit = fit_and_lay_out(job, data)
    bits = bits_report(fit.blockmap, fit.plan, proto)
    with atomic_model(job.output) as temporary:
        with job.watch("write"):
            size = save_model(proto, temporary, data_beside(proto, job.output, asked=config.external_data))
            check_written(temporary, str(job.output))
            del proto
            give_back()
        with job.watch("audit"):
            audited = job.target.audit(temporary, fit.blockmap, fit.plan, config.threads)
        with job.watch("compare"):
            compared = _compare(job, fit, temporary)
        job.progress("finish", 1, 1)
    remove_checkpoints(checkpoint_folder(job.output))
    written = _Written(bits=bits, size=size, audit=audited, compare=compared)
    return Result(output=job.output, plan=fit.plan, report=_report(job, fit, written))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What is known of the written model.

    Attributes:
        bits: of every quantized layer.
        size: in bytes, data beside it included.
        audit: which kernels it runs on.
        compare: its output against the float model's.
    """

    bits: BitsReport
    size: int
    audit: Audit
    compare: OutputComparison


def _compare(job: Job, fit: FitToWrite, written: Path) -> OutputComparison:
    """The written model against the float model on the first calibration samples."""
    count = min(len(fit.reference), COMPARED)

    def progress(done: int) -> None:
        job.progress("compare", done, count)

    models, threads = (job.model, written), job.config.threads
    return compare(models, fit.dataset, fit.reference, threads=threads, task=job.task, progress=progress)


def _report(job: Job, fit: FitToWrite, written: _Written) -> Report:
    """Everything that is said of the quantization."""
    return Report(
        model=str(job.model),
        output=str(job.output),
        target=job.target.name,
        graph=found_graph(fit.blockmap),
        audit=written.audit,
        bits=written.bits,
        saturation=fit.saturation,
        compare=written.compare,
        size_mb=Sizes(float_model=round(fit.loaded.size / 1e6, 4), quantized=round(written.size / 1e6, 4)),
        seconds=job.watch.seconds(),
        steps=fit.steps,
        sensitivity=section(fit.sections, SensitivityReport),
        precision=section(fit.sections, PrecisionReport),
        quality=section(fit.sections, PromiseReport),
        sections=other_sections(fit.sections),
        task=choose_task(fit.reference[0].shape, job.task).name,
        calibration=_calibration(fit.opened),
        config=job.config.to_dict(),
        environment=environment(job.config.threads),
    )


def _calibration(opened: OpenedData) -> CalibrationReport:
    source, preprocessing = opened.source, opened.preprocessing
    return CalibrationReport(
        source=source.description,
        samples=source.count,
        skipped=_skipped(source),
        preprocessing=None if preprocessing is None else preprocessing.to_dict(),
        described="" if preprocessing is None else preprocessing.describe(),
        preprocessing_from=opened.origin,
    )


def _skipped(source: Source | Labelled) -> tuple[SkippedFile, ...]:
    return tuple(SkippedFile(file=name, reason=reason) for name, reason in source.skipped)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What ``inspect`` returns.

    Attributes:
        report: what was found, under the names of the quantization's report.
        blockmap: every layer, attention and normalisation.
    """

    report: InspectionReport
    blockmap: BlockMap


def inspect(model: str | Path) -> Inspection:
    """What is found in a model.

    Raises:
        OnnxVitqError: the model cannot be read, or nothing in it could be quantized.
    """
    loaded = load_model(Path(model))
    graph = loaded.graph
    edits = bring_to_canonical_form(loaded, threads=0)
    blockmap = find_blocks(graph, str(model))
    report = InspectionReport(
        model=str(model),
        graph=found_graph(blockmap),
        inputs=tuple(asdict(spec) for spec in loaded.inputs),
        outputs=loaded.outputs,
        canonical_edits={name: count for name, count in edits.items() if count},
        map=blockmap.to_dict(),
    )
    return Inspection(report=report, blockmap=blockmap)


def evaluate(
    models: tuple[str | Path, str | Path],
    data: str | Path,
    *,
    preprocess: PreprocessOptions | None = None,
    task: Task | None = None,
    batch: int = 32,
    threads: int = 0,
) -> EvaluationReport:
    """The metric of two models on labelled data, and how far they agree.

    The preprocessing that the quantized model carries is used, unless the options say otherwise; a file beside the
    float model is asked only where the models say nothing.

    Args:
        models: the float and the quantized one.
        data: a folder a class, or an .npz file with ``x`` and ``y``.
        preprocess: how images become inputs; resolved from the models where not said.
        task: what the models' outputs mean; chosen by the shape of the first output where not said.
        batch: samples run at a time, where the models' batch is free.
        threads: of onnxruntime; 0 for one a core.

    Raises:
        OnnxVitqError: the models or the data cannot be used.
    """
    paths = (Path(models[0]), Path(models[1]))
    (inputs, first), (_, second) = (_describe_inputs(path) for path in paths)
    metadata = {**first, **second}
    beside = None if PREPROCESSING_KEY in metadata else find_config_file(paths[0])
    preprocessing, _ = preprocessing_for(inputs, metadata, preprocess or PreprocessOptions(), beside, data)
    labelled = open_labelled(Path(data), inputs, preprocessing, batch=batch)
    return replace(evaluate_labelled(paths, labelled, threads=threads, task=task), skipped=_skipped(labelled))


def _describe_inputs(model: Path) -> tuple[tuple[InputSpec, ...], Mapping[str, str]]:
    """Inputs and metadata of any ONNX model that onnxruntime can load, quantized or not."""
    session = Session(model, level="disabled", threads=1)
    return session.input_specs, session.metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What ``bench`` returns.

    Attributes:
        timings: latency of each model, by the number of threads.
        footprints: load and memory of each model in a fresh process.
        operators: time by operator of each model; empty where it was not asked for.
    """

    timings: Mapping[int, list[Timing]]
    footprints: list[Loading]
    operators: list[dict[str, OperatorTime]]


def bench(
    models: Sequence[str | Path],
    *,
    batch: int = 1,
    threads: Sequence[int] = (1,),
    runs: int = 15,
    seed: int = 0,
    profiled: bool = False,
) -> Benchmark:
    """Models on random inputs: interleaved latency, load and memory in a fresh process, time by operator.

    Args:
        models: the first is the reference.
        batch: samples a run, where a model's batch is free.
        threads: numbers of threads of onnxruntime; memory and operators are measured with the first.
        runs: of each model and number of threads.
        seed: of the random inputs.
        profiled: measure time by operator, too.

    Raises:
        OnnxVitqError: onnxruntime cannot load a model.
    """
    paths = [Path(model) for model in models]
    feeds = [random_feed(_describe_inputs(path)[0], batch, seed) for path in paths]
    return Benchmark(
        timings={count: time_models(paths, feeds, threads=count, runs=runs) for count in threads},
        footprints=footprints(paths, feeds, threads=threads[0]),
        operators=profile(paths, feeds, threads=threads[0], runs=runs) if profiled else [],
    )


def export(spec: str, output: str | Path, options: ExportOptions | None = None) -> ExportResult:
    """Export a torch module to ONNX, its outputs checked in onnxruntime.

    Args:
        spec: what to export, such as ``hf:google/vit-base-patch16-224`` (docs of ``onnxvitq export``).
        output: the file to write.
        options: the defaults when None.

    Raises:
        OnnxVitqError: there is no such module, or it cannot be exported.
    """
    return export_model(spec, Path(output), options or ExportOptions(), run=_run_file)


def _run_file(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return Session(path, level="disabled").run(feeds)
