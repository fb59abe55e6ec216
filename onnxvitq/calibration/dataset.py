"""The calibration dataset: samples that every pass of a fit reads again, and the held-out ones among them."""

from collections.abc import Iterator, Mapping

import numpy as np

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.source import Source

HELD_OUT_BYTES = 32 * 2**20  # of held-out inputs kept in memory; steps are evaluated on them
KEPT_FEEDS = 16  # samples kept of a source that may not give the same again; later passes see only these


class CalibrationDataset:
    """Iterates over the feeds (input name -> array) of a source, as often as it is asked to.

    Args:
        source: the samples.
        again: whether the source gives the same samples each time. If not, the first pass sees all samples, and later ones
            the first ``KEPT_FEEDS``, which are kept in memory.
        keep_digests: collect ``digests``, by which samples of another set are compared with these.

    Attributes:
        kept: how many samples later passes see; None where they see all.
        digests: of every sample of the first pass, where they were asked for.
    """

    def __init__(self, source: Source, *, again: bool, keep_digests: bool = False) -> None:
        self.kept = None if again else KEPT_FEEDS
        self._source = source
        self._first: list[Mapping[str, np.ndarray]] = []
        self._held: list[tuple[int, Mapping[str, np.ndarray]]] = []
        self._room = HELD_OUT_BYTES
        self._read = False
        self._keep_digests = keep_digests
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
            if self._keep_digests:
                self.digests.update(sample_digests(feed))
            yield feed

    def _hold(self, index: int, feed: Mapping[str, np.ndarray]) -> None:
        if index and not is_held_out(index):
            return
        self._room -= sum(value.nbytes for value in feed.values())
        if len(self._held) < 2 or self._room >= 0:
            self._held.append((index, feed))

    def held_out(self) -> list[tuple[int, Mapping[str, np.ndarray]]]:
        """(number, feed) of each held-out sample that is kept from the first pass; the first sample where none is held out."""
        return self._held[1:] or self._held
