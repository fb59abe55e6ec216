"""Accuracy figures over a stream of outputs; nothing is kept but sums."""

import math

from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.tasks.choose import choose_task
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.numerics.decibels import sqnr


class OutputDifference:
    """How far outputs are from a reference: SQNR in dB, cosine, relative difference, share of equal decisions.

    ``update`` takes one batch of each.

    Args:
        task: says what of an output counts and what it decides; chosen by the first output's shape when None.
        probabilities: whether a softmax made the outputs (``Task.comparable``).
    """

    def __init__(self, task: Task | None = None, *, probabilities: bool = False) -> None:
        self._task, self._probabilities = task, probabilities
        self._signal = self._noise = self._dot = self._power = 0.0
        self._agreeing = self._samples = 0

    def update(self, reference: FloatArray, output: FloatArray) -> None:
        """Add one batch: two arrays of one shape."""
        task = self._task = choose_task(reference.shape, self._task)
        a, b = (task.comparable(one, probabilities=self._probabilities).reshape(-1) for one in (reference, output))
        self._signal += float(a @ a)
        self._noise += float((a - b) @ (a - b))
        self._dot += float(a @ b)
        self._power += float(b @ b)
        decided, decided_now = task.decisions(reference), task.decisions(output)
        if decided is not None and decided_now is not None:
            self._agreeing += int((decided == decided_now).sum())
            self._samples += len(decided)

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
        """Share of samples with the same decision, 0 to 1; None where nothing is decided."""
        return self._agreeing / self._samples if self._samples else None
