"""How long the stages of a quantization take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnxvitq.report.report import Seconds


class Stopwatch:
    """Seconds by stage, added up over several visits; it starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._taken: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts what happens inside for a stage: the name of a field of ``Seconds``."""
        start = time.perf_counter()
        yield
        self._taken[stage] = self._taken.get(stage, 0.0) + time.perf_counter() - start

    def seconds(self) -> Seconds:
        """Of every stage so far, and in all; every stage but ``judge`` was visited."""
        total = time.perf_counter() - self._start
        return Seconds(**{stage: round(taken, 3) for stage, taken in (*self._taken.items(), ("total", total))})
