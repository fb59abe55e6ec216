"""Classification: the largest of a sample's class scores is its decision, top-1 the metric."""

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray
from onnxvitq.evaluation.tasks.features import Features
from onnxvitq.numerics.drop import ExpectedDrop, expected_drop


class Classification(Features):
    """Class scores (B, classes), logits or probabilities, of at least two classes, as the model's first output."""

    name = "classification"
    metric = "top1"

    def decisions(self, output: FloatArray) -> NDArray[np.int64] | None:
        """The class of the largest score, (B,)."""
        return output.argmax(axis=1)

    def refusal(self, output: FloatArray, labels: LongArray | None = None) -> str:
        """Whether there are no classes, or a label is none of them."""
        if output.ndim != 2 or output.shape[1] < 2:
            return super().refusal(output)
        classes = output.shape[1]
        if labels is not None and (labels.max(initial=0) >= classes or labels.min(initial=0) < 0):
            return f"expected classes 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        return ""

    def scores(self, output: FloatArray, labels: LongArray) -> DoubleArray:
        """1 where the decision is the label, else 0; (B,)."""
        return (output.argmax(axis=1) == labels).astype(np.float64)

    def chance(self, output: FloatArray) -> float:
        """One of the classes."""
        return 1 / output.shape[1]

    def expected_drop(
        self, margins: FloatArray, evaluated: tuple[FloatArray, FloatArray], labels: LongArray | None
    ) -> ExpectedDrop:
        """A decision is lost when the error of the difference of two scores exceeds their margin (``numerics.drop``)."""
        return expected_drop(margins, evaluated, labels)
