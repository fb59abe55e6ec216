"""Latency of several models, interleaved so that their ratio holds when the machine's speed drifts; where the time goes; what
loading takes in a fresh process.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxvitq.graph.scratch import scratch_folder
from onnxvitq.runtime.footprint import footprint
from onnxvitq.runtime.profile import OperatorTime, operator_times
from onnxvitq.runtime.session import Session

WARM_UP = 2
LOADS = 7  # fresh processes a model; from one to the next the allocator's luck moves the peak by a quarter


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one model takes.

    Attributes:
        model: path of the file.
        load_ms: cold load in this process, in ms.
        median_ms: of its runs, in ms.
        lower_ms: lower quartile of its runs, in ms.
        upper_ms: upper quartile, in ms.
        speedup: the first model's median over its own.
    """

    model: str
    load_ms: float
    median_ms: float
    lower_ms: float
    upper_ms: float
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What loading one model takes in fresh processes.

    Attributes:
        model: path of the file.
        load_ms: median of cold load, in ms.
        peak_mb: median of the memory at its peak, in MB.
        largest_mb: the largest peak, in MB.
    """

    model: str
    load_ms: float
    peak_mb: float
    largest_mb: float


def time_models(
    models: Sequence[Path], feeds: Sequence[Mapping[str, np.ndarray]], *, threads: int, runs: int
) -> list[Timing]:
    """Time models on their feeds (one a model), in turn within each of ``runs`` rounds, after ``WARM_UP`` rounds."""
    sessions, loads = [], []
    for model in models:
        start = time.perf_counter()
        sessions.append(Session(model, threads=threads))
        loads.append(time.perf_counter() - start)
    times: list[list[float]] = [[] for _ in models]
    for turn in range(WARM_UP + runs):
        for session, feed, taken in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(feed)
            if turn >= WARM_UP:
                taken.append(time.perf_counter() - start)
    medians = [float(np.median(taken)) for taken in times]
    return [
        Timing(
            model=str(model),
            load_ms=round(1e3 * load, 2),
            median_ms=round(1e3 * median, 3),
            lower_ms=round(1e3 * float(np.quantile(taken, 0.25)), 3),
            upper_ms=round(1e3 * float(np.quantile(taken, 0.75)), 3),
            speedup=round(medians[0] / median, 3),
        )
        for model, load, median, taken in zip(models, loads, medians, times, strict=True)
    ]


def footprints(models: Sequence[Path], feeds: Sequence[Mapping[str, np.ndarray]], *, threads: int) -> list[Loading]:
    """What ``LOADS`` fresh processes a model took, in turn."""
    with scratch_folder() as folder:
        files = [folder / f"{index}.npz" for index in range(len(models))]
        for file, feed in zip(files, feeds, strict=True):
            np.savez(file, allow_pickle=False, **feed)
        rounds = [
            [footprint(model, file, threads) for model, file in zip(models, files, strict=True)] for _ in range(LOADS)
        ]
    return [
        Loading(
            model=taken[0].model,
            load_ms=float(np.median([process.load_ms for process in taken])),
            peak_mb=float(np.median([process.peak_mb for process in taken])),
            largest_mb=max(process.peak_mb for process in taken),
        )
        for taken in zip(*rounds, strict=True)
    ]


def profile(
    models: Sequence[Path], feeds: Sequence[Mapping[str, np.ndarray]], *, threads: int, runs: int
) -> list[dict[str, OperatorTime]]:
    """Time by operator of each model, in runs that are interleaved as in ``time_models``."""
    with scratch_folder() as folder:
        sessions = []
        for index, model in enumerate(models):
            (folder / str(index)).mkdir()
            sessions.append(Session(model, threads=threads, profile=folder / str(index)))
        for _ in range(WARM_UP + runs):
            for session, feed in zip(sessions, feeds, strict=True):
                session.run(feed)
        return [operator_times(session.end_profile(), WARM_UP) for session in sessions]
