"""One pass over the data: what is measured, that it streams, and what is refused."""

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.calibration import sweep as sweep_module
from onnxvitq.calibration.sweep import Sampling, sweep
from onnxvitq.core.errors import CalibrationError, InvalidGraphError
from onnxvitq.core.statistics import Kind, StatisticsRequest
from onnxvitq.runtime.session import Session

Feed = dict[str, np.ndarray]
RANGE = StatisticsRequest(tensor="y", kind="range")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x (N, T, 4) => y = x + 1, l = log(x), m = x as it is."""
    text = "(float[N,T,4] x) => (float[A,B,C] y, float[D,E,F] l, float[G,H,I] m) <float one = {1}>"
    onnx.save(model_of(f"{text} {{ y = Add(x, one) l = Log(x) m = Identity(x) }}"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def feeds(count: int, *, low: float = 1.0) -> list[Feed]:
    """Samples (1, 3, 4); sample i holds low + i at its first place and low elsewhere."""
    samples = [np.full((1, 3, 4), low, np.float32) for _ in range(count)]
    for index, sample in enumerate(samples):
        sample[0, 0, 0] += index
    return [{"x": sample} for sample in samples]


def test_ranges_are_over_all_samples_and_every_sample_counts(model: Path) -> None:
    stats = sweep(
        model, feeds(7, low=-2.0), (RANGE, StatisticsRequest(tensor="m", kind="range")), Sampling(seed=0), threads=1
    )
    assert stats.count == 7
    assert stats.ranges == {"y": (-1.0, 5.0), "m": (-2.0, 4.0)}
    assert [stats.channels, stats.rows, stats.lefts, stats.rights, stats.wholes] == [{}] * 5


def test_every_kind_of_statistic_comes_back_under_its_name(model: Path) -> None:
    kinds: tuple[Kind, ...] = ("range", "channels", "rows", "left", "right", "whole")
    stats = sweep(
        model, feeds(5), [StatisticsRequest(tensor="m", kind=kind) for kind in kinds], Sampling(seed=0), threads=1
    )
    assert stats.ranges == {"m": (1.0, 5.0)}
    np.testing.assert_array_equal(stats.channels["m"], [[1, 1, 1, 1], [5, 1, 1, 1]])
    assert stats.rows["m"].shape == (5, 3, 4)
    assert stats.lefts["m"].shape == stats.rights["m"].shape == (5, 1, 3, 4)
    assert len(stats.wholes["m"]) == 5
    assert [float(value.max()) for value in stats.wholes["m"]] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_some_samples_alone_count_as_those_they_are(model: Path) -> None:
    sampling = Sampling(seed=0, only=frozenset({1, 3}))
    stats = sweep(model, feeds(7), (RANGE, StatisticsRequest(tensor="m", kind="right")), sampling, threads=1)
    assert stats.count == 2
    assert stats.ranges == {"y": (2.0, 5.0)}
    assert stats.rights["m"].max(axis=(1, 2, 3)).tolist() == [2.0, 4.0]


def test_a_tensor_is_computed_only_when_it_is_asked_for(model: Path) -> None:
    assert (
        sweep(model, feeds(2, low=-1.0), (RANGE,), Sampling(seed=0), threads=1).count == 2
    )  # log(-1) is not looked at


def test_the_same_seed_draws_the_same_rows(model: Path) -> None:
    rng = np.random.default_rng(0)
    many = [{"x": rng.normal(size=(1, 200, 4)).astype(np.float32)} for _ in range(3)]
    request = (StatisticsRequest(tensor="m", kind="rows"),)
    first, second, other = (sweep(model, many, request, Sampling(seed=seed), threads=1).rows["m"] for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert first.shape == other.shape
    assert not np.array_equal(first, other)


def test_tensors_with_as_many_rows_are_sampled_alike(model: Path) -> None:
    rng = np.random.default_rng(0)
    many = [{"x": rng.normal(size=(1, 200, 4)).astype(np.float32)} for _ in range(3)]
    requests = [StatisticsRequest(tensor=tensor, kind="rows") for tensor in "ym"]
    rows = sweep(model, many, requests, Sampling(seed=0), threads=1).rows
    assert np.array_equal(rows["y"], rows["m"] + 1)


def test_a_request_made_twice_is_measured_once(model: Path) -> None:
    assert sweep(model, feeds(2), (RANGE, RANGE), Sampling(seed=0), threads=1).ranges == {"y": (2.0, 3.0)}


def test_each_feed_is_read_once_and_let_go_before_the_next(model: Path) -> None:
    taken: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Feed]:
        for feed in feeds(5):
            gc.collect()
            assert sum(sample() is not None for sample in taken) <= 1  # the one just run, at most
            sample = feed["x"].copy()
            taken.append(weakref.ref(sample))
            yield {"x": sample}
            del sample

    stats = sweep(model, stream(), (RANGE,), Sampling(seed=0), threads=1)
    assert stats.count == len(taken) == 5


def test_one_session_serves_all_requests_and_samples(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    runs: list[int] = []

    class Counting(Session):
        def __init__(self, path: Path, **options: Any) -> None:
            made.append(path)
            super().__init__(path, **options)

        def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
            runs.append(len(outputs or ()))
            return super().run(feeds, outputs)

    monkeypatch.setattr(sweep_module, "Session", Counting)
    requests = [StatisticsRequest(tensor=tensor, kind=kind) for tensor in "ym" for kind in ("range", "rows", "left")]
    sweep(model, feeds(4), requests, Sampling(seed=0), threads=1)
    assert made == [model]
    assert runs == [2] * 4  # each sample once, each tensor once


def test_progress_is_told_after_every_sample(model: Path) -> None:
    told: list[int] = []
    sweep(model, iter(feeds(4)), (RANGE,), Sampling(seed=0), threads=1, progress=told.append)
    assert told == [1, 2, 3, 4]


@pytest.mark.parametrize(("value", "low"), [("NaN", -1.0), ("infinity", 0.0)])
@pytest.mark.parametrize("kind", ["range", "rows", "left", "right"])
def test_a_value_that_is_not_finite_is_named_with_its_tensor_and_sample(
    model: Path, kind: Kind, value: str, low: float
) -> None:
    good, bad = feeds(2), feeds(1, low=low)
    request = (RANGE, StatisticsRequest(tensor="l", kind=kind))
    with pytest.raises(CalibrationError) as caught:
        sweep(model, [*good, *bad], request, Sampling(seed=0), threads=1)
    assert str(caught.value) == "l: NaN or infinity in the float model, at calibration sample 2"


def test_no_samples_are_refused(model: Path) -> None:
    with pytest.raises(CalibrationError, match=r"^calibration data: no samples$"):
        sweep(model, [], (RANGE,), Sampling(seed=0), threads=1)


def test_a_sample_that_does_not_fit_is_one_line(model: Path) -> None:
    with pytest.raises(InvalidGraphError, match="the model does not run on this input") as caught:
        sweep(model, [{"x": np.zeros((1, 3, 5), np.float32)}], (RANGE,), Sampling(seed=0), threads=1)
    assert "\n" not in str(caught.value)
