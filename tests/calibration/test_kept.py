"""Statistics put aside in a file and taken back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxvitq.calibration.kept import KeptStatistics
from onnxvitq.core.errors import OutputError
from onnxvitq.core.statistics import Statistics


def measured() -> Statistics:
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    return Statistics(count=4, ranges={"a": (-1.0, 2.0)}, rows={"a": rows})


def test_statistics_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    kept = KeptStatistics(measured())
    file = kept.put_aside(tmp_path)
    assert file.parent == tmp_path
    again = kept.statistics
    assert again is not kept.statistics  # read anew: they are not in memory
    assert (again.count, again.ranges) == (4, {"a": (-1.0, 2.0)})
    assert np.array_equal(again.rows["a"], measured().rows["a"])
    kept.take_back()
    file.unlink()
    assert kept.statistics is kept.statistics
    assert np.array_equal(kept.statistics.rows["a"], measured().rows["a"])


def test_only_what_is_still_needed_is_put_aside(tmp_path: Path) -> None:
    kept = KeptStatistics(measured())
    kept.put_aside(tmp_path, lambda statistics: replace(statistics, rows={}))
    assert (kept.statistics.ranges, kept.statistics.rows) == ({"a": (-1.0, 2.0)}, {})


def test_a_file_that_cannot_be_written_leaves_the_statistics_in_memory(tmp_path: Path) -> None:
    kept = KeptStatistics(measured())
    with pytest.raises(OutputError, match="temporary files cannot be written"):
        kept.put_aside(tmp_path / "absent")
    assert kept.statistics.ranges == {"a": (-1.0, 2.0)}
