"""Latency of several models, interleaved so that their ratio holds when the machine's speed drifts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxvitq.runtime.session import Session
from onnxvitq.spec import InputSpec

WARM_UP = 2
FREE_SIDE = 224  # pixels, of an image whose size is free


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One model: cold load, median and quartiles of its runs in ms, and the first model's median over its own."""

    model: str
    load_ms: float
    median_ms: float
    lower_ms: float
    upper_ms: float
    speedup: float


def bench(
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


def random_feed(inputs: tuple[InputSpec, ...], batch: int, seed: int, side: int = FREE_SIDE) -> dict[str, np.ndarray]:
    """Normal noise (integers: 0 or 1) for every input; an unknown size is ``batch`` in front and ``side`` elsewhere."""
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for spec in inputs:
        sizes = [size or (batch if axis == 0 else side) for axis, size in enumerate(spec.shape)]
        if len(sizes) == 4 and spec.shape[1] is None:
            sizes[1] = 3
        values = rng.normal(size=sizes) if spec.dtype.startswith("float") else rng.integers(0, 2, sizes)
        feed[spec.name] = values.astype(spec.dtype)
    return feed
