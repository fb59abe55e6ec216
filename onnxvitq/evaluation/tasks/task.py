"""What a task is: the one place that says what a model's outputs mean, and how far two of them are apart.

A new task is one object; ``Classification`` and ``Features`` are good to inherit from. It is given to ``quantize`` or
``evaluate``, or, where the shape of the output tells, named in ``choose``.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray
from onnxvitq.numerics.drop import ExpectedDrop


class Task(Protocol):
    """From the model's outputs to what is compared, a decision and a metric. Holds no state; arrays are (B, ..)."""

    @property
    def name(self) -> str:
        """As in the report."""
        ...

    @property
    def metric(self) -> str:
        """What labelled data give, as in the report's keys, such as ``top1``."""
        ...

    def evaluated_output(self, names: Sequence[str]) -> str:
        """Which of the model's outputs is evaluated, of their names in order."""
        ...

    def comparable(self, output: FloatArray, *, probabilities: bool) -> DoubleArray:
        """The values whose error counts, in float64; ``probabilities``: whether a softmax made the output."""
        ...

    def decisions(self, output: FloatArray) -> NDArray[np.int64] | None:
        """What is decided for each sample, (B,); None where nothing is."""
        ...

    def refusal(self, output: FloatArray, labels: LongArray | None = None) -> str:
        """Why nothing can be decided by such an output, or with such labels; empty where it can."""
        ...

    def scores(self, output: FloatArray, labels: LongArray) -> DoubleArray:
        """The metric of each sample, (B,), 0 to 1; that of many samples is the mean."""
        ...

    def chance(self, output: FloatArray) -> float:
        """The metric that guessing reaches, 0 to 1: labels that are met no better are those of another model."""
        ...

    def expected_drop(
        self, margins: FloatArray, evaluated: tuple[FloatArray, FloatArray], labels: LongArray | None
    ) -> ExpectedDrop:
        """Share of decisions that an error as large as that between two evaluated outputs is expected to lose.

        Args:
            margins: the float model's output for samples whose margins count, (N, ..).
            evaluated: outputs of the float and of the quantized model, (M, ..) each, of samples that may be others.
            labels: of the N samples; None where they are not known.
        """
        ...
