"""What is kept of a sweep: read back whole, under a name that changes with whatever changes the values."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxvitq.calibration.cache import CalibrationCache, open_cache
from onnxvitq.calibration.sweep import Sampling
from onnxvitq.core.errors import OutputError
from onnxvitq.core.statistics import Statistics, StatisticsRequest

KINDS = ("range", "rows", "left", "right", "whole")
REQUESTS = tuple(StatisticsRequest(tensor=f"of {kind}", kind=kind) for kind in KINDS)  # type: ignore[arg-type]
SAMPLING = Sampling(seed=3, positions=np.array([32, 1, 1], np.float32))


def stats(value: float = 1.0) -> Statistics:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4) * np.float32(value) / np.float32(3)
    return Statistics(
        count=5,
        ranges={"of range": (-0.1 * value, float(np.float32(0.3)))},
        rows={"of rows": array},
        lefts={"of left": array[None] + np.float32(1)},
        rights={"of right": array[None] + np.float32(2)},
        wholes={"of whole": (array[0], array[1] + np.float32(3))},
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.onnx.data").write_bytes(b"weights")
    return folder / "model.onnx"


@pytest.fixture
def kept(tmp_path: Path) -> CalibrationCache:
    return open_cache(str(tmp_path / "cache" / "new"), {"samples": "abc"})


def measured(
    cache: CalibrationCache,
    model: Path,
    requests: tuple[StatisticsRequest, ...] = REQUESTS,
    sampling: Sampling = SAMPLING,
) -> tuple[Statistics, bool]:
    """What the cache gives, and whether it had to be measured."""
    calls = []

    def measure() -> Statistics:
        calls.append(1)
        return stats()

    return cache.stats(model, requests, sampling, measure), bool(calls)


def entry(cache: CalibrationCache) -> Path:
    [path] = cache.folder.iterdir()
    return path


def test_the_second_time_is_read_and_equal(kept: CalibrationCache, model: Path) -> None:
    first, second = measured(kept, model), measured(kept, model)
    assert (first[1], second[1]) == (True, False)
    assert second[0].count == 5
    assert second[0].ranges == first[0].ranges
    for field in ("rows", "lefts", "rights"):
        [(name, array)] = getattr(second[0], field).items()
        expected = getattr(first[0], field)[name]
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
    [values] = second[0].wholes.values()
    assert [np.array_equal(*pair) for pair in zip(values, first[0].wholes["of whole"], strict=True)] == [True, True]


CHANGES: dict[str, Callable[[CalibrationCache, Path], bool]] = {
    "graph": lambda cache, model: model.write_bytes(b"other") > 0 and measured(cache, model)[1],
    "weights": lambda cache, model: model.with_suffix(".onnx.data").write_bytes(b"w") > 0 and measured(cache, model)[1],
    "samples": lambda cache, model: measured(replace(cache, data=cache.data + "x"), model)[1],
    "requests": lambda cache, model: measured(cache, model, REQUESTS[:2])[1],
    "seed": lambda cache, model: measured(cache, model, REQUESTS, replace(SAMPLING, seed=4))[1],
    "positions": lambda cache, model: measured(cache, model, REQUESTS, Sampling(seed=3))[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_it_is_measured_again(kept: CalibrationCache, model: Path, change: str) -> None:
    assert measured(kept, model)[1]
    assert CHANGES[change](kept, model)
    assert len(list(kept.folder.iterdir())) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    where = data.index(np.float32(23 / 3).tobytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    path.write_bytes(b"something else")


def another(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def renamed(path: Path) -> None:
    loaded = dict(np.load(path))
    loaded["header"] = np.frombuffer(loaded["header"].tobytes().replace(path.stem.encode(), b"0" * 64), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **loaded)


@pytest.mark.parametrize("damage", [cut, altered, foreign, another, renamed])
def test_a_bad_entry_is_told_and_replaced(
    kept: CalibrationCache, model: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    measured(kept, model)
    damage(entry(kept))
    with caplog.at_level(logging.WARNING):
        again, ran = measured(kept, model)
    assert ran
    assert again.count == 5
    assert [record.message.startswith("calibration cache:") for record in caplog.records] == [True]
    assert not measured(kept, model)[1]


def test_what_cannot_be_kept_is_used_all_the_same(
    kept: CalibrationCache, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.folder.rmdir()
    with caplog.at_level(logging.WARNING):
        assert measured(kept, model)[1]
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="expected a folder for the calibration cache"):
        open_cache(str(tmp_path / "file"), {})
