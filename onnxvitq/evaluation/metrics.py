"""Accuracy figures over a stream of outputs; nothing is kept but sums."""

import math

import numpy as np

from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.decibels import sqnr

SMALLEST = 1e-12  # of a probability: what is less is of no class that could be chosen


class OutputDifference:
    """How far outputs are from a reference: SQNR in dB, cosine, relative difference, top-1 agreement.

    ``update`` takes one batch of each; agreement counts rows (B, classes) whose largest entry is the same, and is None
    for outputs of another rank.

    Args:
        probabilities: take what the outputs are a softmax of: their logarithms, less the mean of each row. Probabilities are 0
            or 1 nearly everywhere and hide an error, until it moves one of the few rows that are neither: of a text
            recogniser's 8000, three made nine tenths of the error.
    """

    def __init__(self, *, probabilities: bool = False) -> None:
        self._probabilities = probabilities
        self._signal = self._noise = self._dot = self._power = 0.0
        self._agreeing = self._rows = 0

    def update(self, reference: FloatArray, output: FloatArray) -> None:
        """Add one batch: two arrays of one shape."""
        a, b = self._flat(reference), self._flat(output)
        self._signal += float(a @ a)
        self._noise += float((a - b) @ (a - b))
        self._dot += float(a @ b)
        self._power += float(b @ b)
        if reference.ndim == 2 and reference.shape[1] > 1:
            self._agreeing += int((reference.argmax(axis=1) == output.argmax(axis=1)).sum())
            self._rows += len(reference)

    def _flat(self, values: FloatArray) -> np.ndarray:
        """(B, ..) -> (all elements,) in float64."""
        exact = values.astype(np.float64)
        if self._probabilities:
            exact = np.log(np.maximum(exact, SMALLEST))
            exact -= exact.mean(axis=-1, keepdims=True)
        return exact.reshape(-1)

    @property
    def sqnr_db(self) -> float:
        """10 log10 of signal power over error power, between -120 and 120."""
        return sqnr(self._signal, self._noise)

    @property
    def cosine(self) -> float:
        """Cosine similarity of all outputs as one vector."""
        norm = math.sqrt(self._signal * self._power)
        return self._dot / norm if norm > 0 else float(self._signal == self._power)

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the reference."""
        if self._signal == 0:
            return 0.0 if self._noise == 0 else 1.0
        return math.sqrt(self._noise / self._signal)

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same top-1, 0 to 1; None when outputs are not (B, classes)."""
        return self._agreeing / self._rows if self._rows else None
