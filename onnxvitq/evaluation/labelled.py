"""The metric of two models on labelled data, and how far they agree."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.tasks.choose import choose_task, evaluated_output
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.report.model_records import EvaluationReport
from onnxvitq.runtime.session import Session

Batch = tuple[Mapping[str, np.ndarray], np.ndarray]


def evaluate_labelled(
    models: tuple[Path, Path], batches: Iterable[Batch], *, threads: int, task: Task | None = None
) -> EvaluationReport:
    """Run (float, quantized) over labelled batches; only the first len(labels) rows of a batch count.

    Args:
        models: (float, quantized).
        batches: inputs, and the labels of their samples.
        threads: of onnxruntime.
        task: says which output is evaluated and how; chosen by the float model's output when None.

    Raises:
        DataError: nothing is decided by the output, the models do not have the same classes, a label is not one of
            them, or there is no sample.
    """
    sessions = [Session(model, threads=threads) for model in models]
    names = [evaluated_output(session.outputs, task) for session in sessions]
    difference, right, count = OutputDifference(task), [0.0, 0.0], 0
    for feed, labels in batches:
        first, second = (
            session.run(feed, [name])[0][: len(labels)] for session, name in zip(sessions, names, strict=True)
        )
        task = choose_task(first.shape, task)
        for name, output in zip(names, (first, second), strict=True):
            _check(task, name, output, labels)
        if first.shape != second.shape:
            problem = f"expected {first.shape[1]} classes as in {models[0]}, got {second.shape[1]}"
            raise DataError(str(models[1]), problem, "are these two forms of one model?")
        difference.update(first, second)
        for index, output in enumerate((first, second)):
            right[index] += float(task.scores(output, labels).sum())
        count += len(labels)
    if not count:
        raise DataError("labelled data", "no samples")
    assert task is not None  # there was a batch
    agreement = difference.agreement
    return EvaluationReport(
        samples=count,
        reference=round(100 * right[0] / count, 3),
        quantized=round(100 * right[1] / count, 3),
        agreement=None if agreement is None else round(agreement, 5),
        sqnr_db=round(difference.sqnr_db, 2),
        task=task.name,
        metric=task.metric,
    )


def _check(task: Task, name: str, output: FloatArray, labels: np.ndarray) -> None:
    if refusal := task.refusal(output):
        raise DataError(f"output {name}", refusal)
    if refusal := task.refusal(output, labels):
        raise DataError("labels", refusal)
