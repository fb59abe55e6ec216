"""Timings from a clock that the test turns: order of the runs, medians, quartiles, ratios."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxvitq.core.tensors import InputSpec
from onnxvitq.evaluation import bench as benching
from onnxvitq.evaluation.bench import LOADS, WARM_UP, Loading, footprints, time_models
from onnxvitq.runtime.footprint import Footprint
from onnxvitq.runtime.noise import random_feed


class Clock:
    """Time that passes only when a fake session says so, and the list of what ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[tuple[str, Any]] = []

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A model called "3" takes 3 s to load and 3 s a run, the slower the later: n s more in its n-th run."""
    clock = Clock()

    class FakeSession:
        def __init__(self, path: Path, *, threads: int) -> None:
            self.seconds, self.runs = float(path.name), 0
            clock.now += self.seconds
            assert threads == 2

        def run(self, feed: dict[str, Any]) -> None:
            clock.ran.append((f"{self.seconds:g}", feed["x"]))
            clock.now += self.seconds + self.runs
            self.runs += 1

    monkeypatch.setattr(benching, "Session", FakeSession)
    monkeypatch.setattr(benching, "time", clock)
    return clock


def test_runs_are_interleaved_each_on_its_own_feed(clock: Clock) -> None:
    time_models([Path("1"), Path("4")], [{"x": np.array("a")}, {"x": np.array("b")}], threads=2, runs=3)
    assert clock.ran == [("1", "a"), ("4", "b")] * (WARM_UP + 3)


def test_figures_worked_by_hand(clock: Clock) -> None:
    first, second = time_models([Path("1"), Path("4")], [{"x": np.zeros(1)}] * 2, threads=2, runs=5)
    assert WARM_UP == 2
    # Runs take 1 + 2 .. 1 + 6 s after two of warm-up, and 4 + 2 .. 4 + 6.
    assert (first.load_ms, first.lower_ms, first.median_ms, first.upper_ms) == (1000, 4000, 5000, 6000)
    assert (second.load_ms, second.lower_ms, second.median_ms, second.upper_ms) == (4000, 7000, 8000, 9000)
    assert (first.speedup, second.speedup) == (1.0, 0.625)
    assert (first.model, second.model) == ("1", "4")


def test_one_model_alone(clock: Clock) -> None:
    (only,) = time_models([Path("2")], [{"x": np.zeros(1)}], threads=2, runs=1)
    assert only.speedup == 1.0
    assert only.lower_ms == only.median_ms == only.upper_ms == 4000


def test_a_real_model_takes_time(vit_file: Path) -> None:
    feed = random_feed((InputSpec(name="image", dtype="float32", shape=(None, 3, 16, 16)),), 2, 0)
    timings = time_models([vit_file, vit_file], [feed, feed], threads=1, runs=3)
    assert len(timings) == 2
    assert all(0 < timing.lower_ms <= timing.median_ms <= timing.upper_ms for timing in timings)
    assert all(timing.load_ms > 0 for timing in timings)


def test_loads_are_interleaved_and_medians_and_the_largest_peak_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(model: Path, feed: Path, threads: int) -> Footprint:
        asked.append(model.name)
        with np.load(feed) as file:
            scale = float(file["x"][0]) * threads
        load = (3, 9, 4, 5, 6, 8, 7)[len(asked) // 2 % LOADS]
        return Footprint(model=model.name, load_ms=scale * load, peak_mb=scale * len(asked) ** 2)

    monkeypatch.setattr(benching, "footprint", fake)
    found = footprints([Path("a"), Path("b")], [{"x": np.ones(1)}, {"x": np.full(1, 10.0)}], threads=2)
    assert asked == ["a", "b"] * LOADS
    assert found == [
        Loading(model="a", load_ms=12.0, peak_mb=98.0, largest_mb=338.0),  # of the seventh and the thirteenth process
        Loading(model="b", load_ms=120.0, peak_mb=1280.0, largest_mb=3920.0),
    ]
