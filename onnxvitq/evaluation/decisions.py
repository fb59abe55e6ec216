"""Samples that a promise about decisions is evaluated on: held out of calibration, or other data, with labels or without."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import FloatArray, InputSpec, LongArray
from onnxvitq.data.arrays import sample_digests
from onnxvitq.data.images import check_path, printable
from onnxvitq.data.labelled import Labelled, is_labelled, open_labelled
from onnxvitq.data.preprocess import Preprocessing
from onnxvitq.data.source import Source, open_source
from onnxvitq.evaluation.tasks.choose import choose_task, evaluated_output
from onnxvitq.evaluation.tasks.classification import Classification
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.numerics.drop import ExpectedDrop
from onnxvitq.runtime.session import Session

HELD_OUT = "held-out calibration samples"
Feed = Mapping[str, np.ndarray]
Changed = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """What the float model decides on some samples.

    Attributes:
        feeds: can be iterated again and again; rows of the last one beyond ``len(scores)`` fill it up and do not count.
        scores: the float model's evaluated output, (N, ..); class scores (N, classes) for classification.
        margins: the float model's output whose margins count, (M, ..): ``scores``, or of more samples.
        task: says what is decided.
        labels: (N,); None where they are not known. With them, ``margins`` is ``scores``.
        source: of the samples, in one line.
        skipped: (file, reason) of files that could not be read.
        digest: SHA-256 of all samples and labels in hex; empty for calibration samples.
    """

    feeds: Iterable[Feed]
    scores: FloatArray
    margins: FloatArray
    task: Task = field(default_factory=Classification)
    labels: LongArray | None = None
    source: str = HELD_OUT
    skipped: tuple[tuple[str, str], ...] = ()
    digest: str = ""

    def changed(self, outputs: FloatArray) -> tuple[Changed, Changed]:
        """Which decisions another model loses and gains, (N,) each.

        Without labels, every decision that is another one is lost. With them, those are lost that were right, and those
        gained that are right now.

        Args:
            outputs: the other model's evaluated output, (N, ..).
        """
        before, after = self.task.decisions(self.scores), self.task.decisions(outputs)
        assert before is not None  # whoever made this asked for the task's refusal
        assert after is not None
        lost = before != after
        if self.labels is None:
            return lost, np.zeros(len(lost), bool)
        return lost & (before == self.labels), lost & (after == self.labels)

    def expected_drop(self, reference: FloatArray, outputs: FloatArray) -> ExpectedDrop:
        """Share of decisions that an error as large as that between two evaluated outputs, (K, ..), is expected to lose."""
        return self.task.expected_drop(self.margins, (reference, outputs), self.labels)


def held_out_decisions(
    feeds: Sequence[Feed],
    references: Sequence[FloatArray],
    everything: Sequence[FloatArray],
    task: Task | None = None,
) -> Decisions:
    """Of held-out samples, with the margins of all calibration samples.

    Args:
        feeds: the held-out samples.
        references: their float outputs.
        everything: the float outputs of all samples.
        task: says what is decided; chosen by the output's shape when None.

    Raises:
        ConfigError: nothing is decided by the evaluated output.
    """
    task = _deciding(everything[0], task)
    scores, margins = np.concatenate(references), np.concatenate(everything)
    return Decisions(feeds=feeds, scores=scores, margins=margins, task=task)


def _deciding(output: FloatArray, task: Task | None) -> Task:
    """The task, where it reads decisions from such an output.

    Raises:
        ConfigError: it does not.
    """
    task = choose_task(output.shape, task)
    if refusal := task.refusal(output):
        raise ConfigError("max_drop", refusal)
    return task


def open_decisions(path: Path, inputs: tuple[InputSpec, ...], preprocessing: Preprocessing | None) -> Labelled | Source:
    """Labelled samples where the path holds labels (a folder a class, .npz with x and y), else samples.

    Raises:
        DataError: nothing there, or what is there does not fit the model.
    """
    found = check_path(path)
    if is_labelled(found, inputs):
        return open_labelled(found, inputs, preprocessing)
    return open_source(found, inputs, preprocessing)


def read_decisions(
    model: Path, data: Labelled | Source, calibrated: Collection[bytes], threads: int, task: Task | None = None
) -> Decisions:
    """What the float model decides on other data than it is calibrated with.

    Args:
        model: the float model.
        data: of ``open_decisions``.
        calibrated: digests of the calibration samples (``sample_digests``).
        threads: of onnxruntime.
        task: says which output is evaluated and what is decided; chosen by the output's shape when None.

    Raises:
        ConfigError: nothing is decided by the evaluated output.
        DataError: a sample is a calibration sample too, a label is no class, or labels are those of another model.
    """
    session, contents = Session(model, threads=threads), hashlib.sha256()
    name, known = evaluated_output(session.outputs, task), isinstance(data, Labelled)
    scores, labels, shared = [], [], 0
    for feed, right in _pairs(data):
        digests = sample_digests(feed)[: None if right is None else len(right)]
        shared += sum(digest in calibrated for digest in digests)
        scores.append(session.run(feed, [name])[0][: len(digests)])
        task = _deciding(scores[-1], task)
        contents.update(b"".join(digests))
        if right is not None:
            labels.append(right)
            contents.update(right.tobytes())
    found = np.concatenate(scores)[: None if known else data.count]
    if shared:
        problem = f"expected samples that are not calibrated with, got {shared} of {len(found)} that are"
        raise DataError(data.description, problem, "move them out of one of the two")
    assert task is not None  # there was a sample
    known_labels = np.concatenate(labels) if known else None
    if known_labels is not None:
        _check_labels(task, found, known_labels, data.description)
    return Decisions(
        feeds=_Feeds(data),
        scores=found,
        margins=found,
        task=task,
        labels=known_labels,
        source=data.description,
        skipped=data.skipped,
        digest=contents.hexdigest(),
    )


def refuse_calibration_data(path: Path, calibration: Any) -> None:
    """Refuse data that a promise is evaluated on and that are calibrated with, before anything is read.

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


def _pairs(data: Labelled | Source) -> Iterator[tuple[dict[str, np.ndarray], LongArray | None]]:
    if isinstance(data, Labelled):
        yield from data
    else:
        yield from ((feed, None) for feed in data)


def _check_labels(task: Task, outputs: FloatArray, labels: LongArray, where: str) -> None:
    if refusal := task.refusal(outputs, labels):
        raise DataError(where, refusal)
    right = float(task.scores(outputs, labels).mean())
    if right <= task.chance(outputs):
        problem = f"expected the labels of this model, got {100 * right:.3g} % right of {outputs.shape[1]} classes"
        raise DataError(where, problem, "folders are classes in the order of their names, or named by their numbers")
