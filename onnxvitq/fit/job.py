"""From a job to a model in memory: open, calibrate, fit, lay out. What is large is let go as soon as it is not needed."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxvitq.calibration.cache import CalibrationCache, open_cache
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.files import refuse_output
from onnxvitq.core.handover import Handover
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.recipe import RECIPE_KEY, recipe
from onnxvitq.core.tensors import FloatArray
from onnxvitq.data.arrays import static_batch
from onnxvitq.data.labelled import Labelled
from onnxvitq.data.opening import OpenedData, PreprocessOptions, gives_the_same_again, open_for_model
from onnxvitq.data.preprocess import PREPROCESSING_KEY
from onnxvitq.data.source import Source
from onnxvitq.evaluation.decisions import Decisions, open_decisions, read_decisions, refuse_calibration_data
from onnxvitq.evaluation.tasks.choose import evaluated_output
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.fit.runner import Fitted, fit
from onnxvitq.fit.start import calibrate
from onnxvitq.fit.state import FitContext, Progress
from onnxvitq.fit.step import Step
from onnxvitq.graph.reading import LoadedModel, load_model
from onnxvitq.graph.writing import to_proto
from onnxvitq.report.model_records import SaturationReport
from onnxvitq.report.records import Section, StepRecord
from onnxvitq.report.stopwatch import Stopwatch
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.memory import give_back
from onnxvitq.targets.target import Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What was asked for.

    Attributes:
        model: path of the float model.
        output: path of the model to write.
        config: options.
        preprocess: what the user said about preprocessing.
        task: what the model's outputs mean; None where their shape says it.
        target: the runtime to write for.
        steps: of the fit, in order.
        progress: called with (stage, done, total).
        watch: seconds by stage.
    """

    model: Path
    output: Path
    config: QuantConfig
    preprocess: PreprocessOptions
    task: Task | None
    target: Target
    steps: Sequence[Step]
    progress: Progress
    watch: Stopwatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitToWrite:
    """What is left of a fit when the model to write has been laid out: neither graph nor statistics.

    Attributes:
        loaded: the float model, without its graph.
        opened: the calibration data.
        dataset: calibration samples, fitted on and held out.
        blockmap: what was found in the canonical graph.
        plan: formats and parameters.
        reference: the float model's evaluated output, (B, ..) each, of the first samples of ``dataset``.
        steps: what each step did.
        sections: what steps add to the report.
        saturation: what processors without VNNI would make of the model.
    """

    loaded: LoadedModel
    opened: OpenedData
    dataset: CalibrationDataset
    blockmap: BlockMap
    plan: QuantPlan
    reference: Sequence[FloatArray]
    steps: tuple[StepRecord, ...]
    sections: tuple[Section, ...]
    saturation: SaturationReport


def fit_and_lay_out(job: Job, data: str | Path | Iterable[Any]) -> tuple[onnx.ModelProto, FitToWrite]:
    """The model to write, and what the report needs of the fit; all else is out of memory by then."""
    config = job.config
    with job.watch("load"):
        loaded = _load(job)
        opened = _open_calibration(job, loaded, data)
        promise_data = _open_promise_data(job, loaded, opened, data)
        bring_to_canonical_form(loaded, config.threads)
        again = gives_the_same_again(data)
        dataset = CalibrationDataset(opened.source, again=again, keep_digests=promise_data is not None)
        graph, loaded = Handover(loaded.graph), replace(loaded, graph=gs.Graph())
    fitted, decisions = _fit(job, graph, loaded, opened, dataset, promise_data)
    give_back()
    with job.watch("write"):
        metadata = {**loaded.metadata, **_metadata(job, opened, decisions)}
        proto = to_proto(
            job.target.write(fitted.graph, fitted.layers, fitted.plan, packed=True), metadata, to_load=True
        )
    to_write = FitToWrite(
        loaded=loaded,
        opened=opened,
        dataset=dataset,
        blockmap=fitted.layers.blockmap,
        plan=fitted.plan,
        reference=fitted.reference,
        steps=fitted.steps,
        sections=fitted.sections,
        saturation=fitted.saturation,
    )
    return proto, to_write


def _fit(
    job: Job,
    graph: Handover[gs.Graph],
    loaded: LoadedModel,
    opened: OpenedData,
    dataset: CalibrationDataset,
    promise_data: Labelled | Source | None,
) -> tuple[Fitted, Decisions | None]:
    """Calibrate and run all steps; with the decisions on other data, where a promise is evaluated on such."""
    config, samples = job.config, opened.source.count
    with job.watch("calibrate"):
        cache = None if config.cache is None else _open_cache(config.cache, dataset, opened)
        count = None if samples is None else math.ceil(samples / (static_batch(loaded.inputs) or 1))
        context = FitContext.of(loaded, dataset, config, job.progress, cache)
        context = replace(
            context,
            checkpoint=checkpoint_folder(job.output),
            target=job.target,
            task=job.task,
            output=evaluated_output(loaded.outputs, job.task),
        )
        state, context = calibrate(graph, context, job.steps, count)
    if promise_data is not None:
        with job.watch("judge"):
            decisions = read_decisions(job.model, promise_data, dataset.digests, config.threads, job.task)
        context = replace(context, decisions=decisions)
    with job.watch("fit"):
        return fit(state, context, job.steps), context.decisions


def _load(job: Job) -> LoadedModel:
    """The float model; the output must be none of its files."""
    refuse_output(job.output, job.model)
    loaded = load_model(job.model, batch=job.config.static_batch)
    for file in loaded.files:
        refuse_output(job.output, file)
    return loaded


def _open_calibration(job: Job, loaded: LoadedModel, data: str | Path | Iterable[Any]) -> OpenedData:
    limit = job.config.num_samples
    return open_for_model(data, loaded.path, loaded.inputs, loaded.metadata, job.preprocess, limit)


def _open_promise_data(
    job: Job, loaded: LoadedModel, opened: OpenedData, data: str | Path | Iterable[Any]
) -> Labelled | Source | None:
    """Other data that a promise is evaluated on, prepared as those of calibration are; None where none are named."""
    if job.config.judged_on is None:
        return None
    path = Path(job.config.judged_on)
    refuse_calibration_data(path, data)
    return open_decisions(path, loaded.inputs, opened.preprocessing)


def _open_cache(folder: str, dataset: CalibrationDataset, opened: OpenedData) -> CalibrationCache | None:
    """A cache for these samples; None, with a warning, where nothing says that another run would read the same.

    Reads the samples once: what is held out of them is kept even where no sweep runs, and the digest is of what was read.
    """
    source = opened.source
    if dataset.kept is None:
        for _ in dataset:
            pass
    if dataset.kept is not None or not source.digest:
        logger.warning("calibration cache: not used, %s cannot be told from others", source.description)
        return None
    preprocessing = None if opened.preprocessing is None else opened.preprocessing.to_dict()
    return open_cache(folder, {"samples": source.digest, "preprocessing": preprocessing})


def checkpoint_folder(output: Path) -> Path:
    """Where blocks that were learned are kept until the output is written."""
    return output.with_name(f"{output.name}.learned")


def _metadata(job: Job, opened: OpenedData, decisions: Decisions | None) -> dict[str, str]:
    """What the written model says of itself."""
    source = opened.source
    written = recipe(
        job.model,
        job.config.to_dict(),
        target=job.target.name,
        data_digest=source.digest,
        samples=source.count,
        promise_digest=None if decisions is None else decisions.digest,
    )
    if opened.preprocessing is None:
        return {RECIPE_KEY: written}
    return {RECIPE_KEY: written, PREPROCESSING_KEY: json.dumps(opened.preprocessing.to_dict(), sort_keys=True)}
