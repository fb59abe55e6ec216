"""Statistics that can be moved to a file while something else needs the memory: they are half of all that a fit holds."""

from collections.abc import Callable
from pathlib import Path

from onnxvitq.calibration.cache import read_stats, write_stats
from onnxvitq.core.statistics import Statistics
from onnxvitq.graph.scratch import scratch_error


class KeptStatistics:
    """The statistics of one graph, in memory or in a file.

    Args:
        statistics: in memory.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics: Statistics | None = statistics
        self._file: Path | None = None

    @property
    def statistics(self) -> Statistics:
        """The statistics; read from the file, and not kept in memory, where they were put aside."""
        if self._statistics is None:
            assert self._file is not None  # put_aside wrote it
            return read_stats(self._file)
        return self._statistics

    def put_aside(self, folder: Path, reduced: Callable[[Statistics], Statistics] | None = None) -> Path:
        """Move the statistics from memory to a file, and return its path.

        Args:
            folder: for the file; it exists, and may be removed after ``take_back``.
            reduced: function from the statistics to those that are still needed; None keeps all.

        Raises:
            OutputError: the file cannot be written; the statistics are still in memory.
        """
        file = folder / "statistics.npz"
        try:
            write_stats(file, self.statistics if reduced is None else reduced(self.statistics))
        except OSError as error:
            raise scratch_error(folder, error) from error
        self._statistics, self._file = None, file
        return file

    def take_back(self) -> None:
        """Move the statistics back to memory. The file is not needed afterwards."""
        self._statistics = self.statistics
