"""Statistics that can be put aside in a file while something else needs the room: they are half of all that a fit holds."""

from collections.abc import Callable
from pathlib import Path

from onnxvitq.calibration.cache import read_stats, write_stats
from onnxvitq.core.statistics import Statistics
from onnxvitq.graph.scratch import scratch_error


class KeptStatistics:
    """The statistics of one graph, in memory or in a file. What they say never changes, only where they lie."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics: Statistics | None = statistics
        self._file: Path | None = None

    @property
    def statistics(self) -> Statistics:
        """Read again where they were put aside; they stay in the file then."""
        if self._statistics is None:
            assert self._file is not None  # put_aside wrote it
            return read_stats(self._file)
        return self._statistics

    def put_aside(self, folder: Path, reduced: Callable[[Statistics], Statistics] | None = None) -> Path:
        """Into a file of a folder, out of memory; the file.

        Args:
            folder: of temporary files.
            reduced: what of them is still needed; all of it when None.

        Raises:
            OutputError: no room in the folder.
        """
        file = folder / "statistics.npz"
        try:
            write_stats(file, self.statistics if reduced is None else reduced(self.statistics))
        except OSError as error:
            raise scratch_error(folder, error) from error
        self._statistics, self._file = None, file
        return file

    def take_back(self) -> None:
        """Into memory again, before the folder goes."""
        self._statistics = self.statistics
