"""Samples that a promise about decisions is judged on: held out of calibration, or other data, with labels or without."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import FloatArray, InputSpec
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.images import check_path, printable
from onnxvitq.data.labelled import Labelled, Labels, is_labelled, open_labelled
from onnxvitq.data.preprocess import Preprocessing
from onnxvitq.data.source import Source, open_source
from onnxvitq.runtime.session import Session

HELD_OUT = "held-out calibration samples"
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """What the float model decides on some samples.

    feeds: can be iterated again and again; rows of the last one beyond ``len(scores)`` fill it up and do not count.
    scores: of the float model, (N, classes). margins: float scores whose margins count, (M, classes); the same, or of more
    samples. labels: (N,), or None; with them, margins are scores. source: one line. skipped: (file, reason). digest: SHA-256 of
    all samples and labels in hex; empty for calibration samples.
    """

    feeds: Iterable[Feed]
    scores: FloatArray
    margins: FloatArray
    labels: Labels | None = None
    source: str = HELD_OUT
    skipped: tuple[tuple[str, str], ...] = ()
    digest: str = ""


def held_out_decisions(
    feeds: Sequence[Feed], references: Sequence[FloatArray], everything: Sequence[FloatArray]
) -> Decisions:
    """Of held-out samples, with the margins of all calibration samples.

    Args:
        feeds: the held-out samples.
        references: their float outputs.
        everything: the float outputs of all samples.

    Raises:
        ConfigError: the first output is no (batch, classes).
    """
    check_scores(everything[0])
    return Decisions(feeds=feeds, scores=np.concatenate(references), margins=np.concatenate(everything))


def check_scores(scores: FloatArray) -> None:
    """Refuse an output in which nothing is decided.

    Raises:
        ConfigError: the first output is no (batch, classes).
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        problem = f"expected class scores (batch, classes) as first output, got shape {list(scores.shape)}"
        raise ConfigError("max_drop", problem)


def open_decisions(path: Path, inputs: tuple[InputSpec, ...], preprocessing: Preprocessing | None) -> Labelled | Source:
    """Labelled samples where the path holds labels (a folder a class, .npz with x and y), else samples.

    Raises:
        DataError: nothing there, or what is there does not fit the model.
    """
    found = check_path(path)
    if is_labelled(found, inputs):
        return open_labelled(found, inputs, preprocessing)
    return open_source(found, inputs, preprocessing)


def read_decisions(model: Path, data: Labelled | Source, seen: Collection[bytes], threads: int) -> Decisions:
    """What the float model decides on other data than it is calibrated with.

    Args:
        model: the float model.
        data: of ``open_decisions``.
        seen: digests of the calibration samples (``sample_digests``).
        threads: of onnxruntime.

    Raises:
        ConfigError: the first output is no (batch, classes).
        DataError: a sample is a calibration sample too, a label is no class, or labels are those of another model.
    """
    session, contents = Session(model, threads=threads), hashlib.sha256()
    scores, labels, shared, known = [], [], 0, isinstance(data, Labelled)
    for feed, right in _pairs(data):
        digests = sample_digests(feed)[: None if right is None else len(right)]
        shared += sum(digest in seen for digest in digests)
        scores.append(session.run(feed)[0][: len(digests)])
        check_scores(scores[-1])
        contents.update(b"".join(digests))
        if right is not None:
            labels.append(right)
            contents.update(right.tobytes())
    found = np.concatenate(scores)[: None if known else data.count]
    if shared:
        problem = f"expected samples that are not calibrated with, got {shared} of {len(found)} that are"
        raise DataError(data.description, problem, "move them out of one of the two")
    known_labels = np.concatenate(labels) if known else None
    if known_labels is not None:
        _check_labels(found, known_labels, data.description)
    return Decisions(
        feeds=_Feeds(data),
        scores=found,
        margins=found,
        labels=known_labels,
        source=data.description,
        skipped=data.skipped,
        digest=contents.hexdigest(),
    )


def refuse_calibration_data(path: Path, calibration: Any) -> None:
    """Refuse data that are judged on and are calibrated with, before anything is read.

    Raises:
        DataError: the same folder or file.
    """
    if isinstance(calibration, str | Path) and path.resolve() == Path(calibration).resolve():
        raise DataError(printable(path), "expected other data than those of calibration, got the same")


class _Feeds:
    """The feeds alone, again and again."""

    def __init__(self, data: Labelled | Source) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Feed]:
        return (feed for feed, _ in _pairs(self._data))


def _pairs(data: Labelled | Source) -> Iterator[tuple[dict[str, np.ndarray], Labels | None]]:
    if isinstance(data, Labelled):
        yield from data
    else:
        yield from ((feed, None) for feed in data)


def _check_labels(scores: FloatArray, labels: Labels, where: str) -> None:
    classes = scores.shape[1]
    if labels.max() >= classes or labels.min() < 0:
        raise DataError(where, f"expected classes 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    right = float((scores.argmax(axis=1) == labels).mean())
    if right <= 1 / classes:
        problem = f"expected the labels of this model, got {100 * right:.3g} % right of {classes} classes"
        raise DataError(where, problem, "folders are classes in the order of their names, or named by their numbers")
