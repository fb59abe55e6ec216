"""Features: no output is a decision; how far it moves is all that can be said."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray
from onnxvitq.numerics.drop import ExpectedDrop

SMALLEST = 1e-12  # of a probability: what is less is of no class that could be chosen


class Features:
    """Any output; evaluated is the model's first one."""

    name = "features"
    metric = "score"

    def evaluated_output(self, names: Sequence[str]) -> str:
        """The first one."""
        return names[0]

    def comparable(self, output: FloatArray, *, probabilities: bool) -> DoubleArray:
        """The output itself; of probabilities what they are a softmax of.

        That is their logarithms, less the mean of each row. Probabilities are 0 or 1 nearly everywhere and hide an error, until
        it moves one of the few rows that are neither: of a text recogniser's 8000, three made nine tenths of the error.
        """
        exact = output.astype(np.float64)
        if probabilities:
            exact = np.log(np.maximum(exact, SMALLEST))
            exact -= exact.mean(axis=-1, keepdims=True)
        return exact

    def decisions(self, output: FloatArray) -> NDArray[np.int64] | None:
        """None: features decide nothing."""
        del output
        return None

    def refusal(self, output: FloatArray, labels: LongArray | None = None) -> str:
        """Why no decision can be read."""
        del labels
        return f"expected class scores (batch, classes), got shape {list(output.shape)}"

    def scores(self, output: FloatArray, labels: LongArray) -> DoubleArray:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("task", self.refusal(output, labels))

    def chance(self, output: FloatArray) -> float:
        """0: there is no metric."""
        del output
        return 0.0

    def expected_drop(
        self, margins: FloatArray, evaluated: tuple[FloatArray, FloatArray], labels: LongArray | None
    ) -> ExpectedDrop:
        """Refused.

        Raises:
            ConfigError: always.
        """
        del evaluated, labels
        raise ConfigError("max_drop", self.refusal(margins))
