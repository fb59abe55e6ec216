"""One streaming pass over the calibration dataset that measures every requested statistic."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.calibration.observers import (
    ChannelObserver,
    Observer,
    OperandObserver,
    RangeObserver,
    RowObserver,
    WholeObserver,
)
from onnxvitq.core.errors import CalibrationError
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.runtime.session import Session

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """How samples and rows are drawn.

    Attributes:
        seed: of every random choice.
        positions: (T,), how often each of T tokens is drawn relative to the others; None draws all alike.
        only: numbers of the samples to run, counted from 0; None runs all.
    """

    seed: int
    positions: FloatArray | None = None
    only: frozenset[int] | None = None


def sweep(
    model: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    requests: Sequence[StatisticsRequest],
    sampling: Sampling,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """Run a model once over ``feeds`` and observe its outputs.

    Args:
        model: a model file whose outputs include every requested tensor.
        feeds: input name -> array, one mapping a sample; read once, one held at a time.
        requests: what to measure.
        sampling: how samples and rows are drawn; the same rows are drawn from every tensor with as many rows.
        threads: of onnxruntime; 0 takes one a core.
        progress: called with the number of samples done.

    Returns:
        The statistics. Memory: bounded by the observers, whatever the number of samples.

    Raises:
        CalibrationError: a tensor holds a NaN or an infinity (it is named), or there was no sample.
    """
    session = Session(model, threads=threads)
    observers = {request: _OBSERVERS[request.kind](sampling) for request in requests}
    wanted = sorted({request.tensor for request in requests})
    count = 0
    for number, feed in enumerate(feeds):
        if sampling.only is not None and number not in sampling.only:
            continue
        values = dict(zip(wanted, session.run(feed, wanted), strict=True))
        for request, observer in observers.items():
            if not observer.update(values[request.tensor], number):
                raise CalibrationError(
                    request.tensor, f"NaN or infinity in the float model, at calibration sample {number}"
                )
        count += 1
        if progress is not None:
            progress(count)
        if sampling.only is not None and count == len(sampling.only):
            break
    if count == 0:
        raise CalibrationError("calibration data", "no samples")
    results: dict[str, dict[str, Any]] = {kind: {} for kind in _OBSERVERS}
    for request in list(observers):
        # An observer gives up its parts as its result is put together, or everything would be in memory twice.
        results[request.kind][request.tensor] = observers.pop(request).result()
    return Statistics(
        count=count,
        ranges=results["range"],
        channels=results["channels"],
        rows=results["rows"],
        lefts=results["left"],
        rights=results["right"],
        wholes=results["whole"],
    )


_OBSERVERS: dict[str, Callable[[Sampling], Observer]] = {
    "range": lambda _: RangeObserver(),
    "channels": lambda _: ChannelObserver(),
    "rows": lambda sampling: RowObserver(sampling.seed, sampling.positions),
    "left": lambda sampling: OperandObserver(sampling.seed, "left", sampling.positions),
    "right": lambda sampling: OperandObserver(sampling.seed, "right"),
    "whole": lambda _: WholeObserver(),
}
