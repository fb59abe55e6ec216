"""Calibration samples that can be read again and again, and which of them are held out."""

from collections.abc import Iterator, Mapping

import numpy as np

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.source import Source

HELD_OUT_BYTES = 32 * 2**20  # of held-out inputs kept for the acceptance of steps
KEPT_FEEDS = 16  # of an iterable that cannot be relied on to give the same again: what every pass after the first sees


class CalibrationDataset:
    """Feeds of a source, again and again; of one that may not give the same ``again``, the first ``kept``.

    Attributes:
        digests: of every sample of the first pass, where they are ``told_apart``.
    """

    def __init__(self, source: Source, *, again: bool, told_apart: bool = False) -> None:
        self.kept = None if again else KEPT_FEEDS
        self._source = source
        self._first: list[Mapping[str, np.ndarray]] = []
        self._held: list[tuple[int, Mapping[str, np.ndarray]]] = []
        self._room = HELD_OUT_BYTES
        self._read = False
        self._told_apart = told_apart
        self.digests: set[bytes] = set()

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        if self._read:
            yield from self._source if self.kept is None else self._first
            return
        self._read = True
        for index, feed in enumerate(self._source):
            if self.kept is not None and len(self._first) < self.kept:
                self._first.append(feed)
            self._hold(index, feed)
            if self._told_apart:
                self.digests.update(sample_digests(feed))
            yield feed

    def _hold(self, index: int, feed: Mapping[str, np.ndarray]) -> None:
        if index and not is_held_out(index):
            return
        self._room -= sum(value.nbytes for value in feed.values())
        if len(self._held) < 2 or self._room >= 0:
            self._held.append((index, feed))

    def held_out(self) -> list[tuple[int, Mapping[str, np.ndarray]]]:
        """(number, feed) of held-out samples seen in the first pass; of the first sample when there was no other."""
        return self._held[1:] or self._held
