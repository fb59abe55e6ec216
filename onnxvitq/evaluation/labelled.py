"""Top-1 of two models on labelled data, and how far they agree."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import DataError
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.runtime.session import Session

Batch = tuple[Mapping[str, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Top-1 of both in per cent, share of equal decisions (0 to 1), SQNR of the second against the first in dB."""

    samples: int
    top1_reference: float
    top1_quantized: float
    agreement: float
    sqnr_db: float


def evaluate(models: tuple[Path, Path], batches: Iterable[Batch], *, threads: int) -> Evaluation:
    """Run (float, quantized) over labelled batches; only the first len(labels) rows of a batch count.

    Raises:
        DataError: the first output is not (B, classes), the models do not have the same classes, a label is not one of
            them, or there is no sample.
    """
    first, second = (Session(model, threads=threads) for model in models)
    difference, right, count = OutputDifference(), [0, 0], 0
    for feed, labels in batches:
        outputs = [session.run(feed)[0][: len(labels)] for session in (first, second)]
        for output in outputs:
            _check_classes(output, labels)
        if outputs[0].shape != outputs[1].shape:
            problem = f"expected {outputs[0].shape[1]} classes as in {models[0]}, got {outputs[1].shape[1]}"
            raise DataError(str(models[1]), problem, "are these two forms of one model?")
        difference.update(*outputs)
        for index, output in enumerate(outputs):
            right[index] += int((output.argmax(axis=1) == labels).sum())
        count += len(labels)
    if not count:
        raise DataError("labelled data", "no samples")
    agreement = difference.agreement
    assert agreement is not None  # _check_classes saw (B, classes)
    return Evaluation(
        samples=count,
        top1_reference=round(100 * right[0] / count, 3),
        top1_quantized=round(100 * right[1] / count, 3),
        agreement=round(agreement, 5),
        sqnr_db=round(difference.sqnr_db, 2),
    )


def _check_classes(output: np.ndarray, labels: np.ndarray) -> None:
    if output.ndim != 2 or output.shape[1] < 2:
        raise DataError("first output", f"expected class scores (batch, classes), got shape {list(output.shape)}")
    if labels.max(initial=0) >= output.shape[1] or labels.min(initial=0) < 0:
        raise DataError("labels", f"expected 0 to {output.shape[1] - 1}, got {labels.min()} to {labels.max()}")
