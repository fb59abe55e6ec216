"""Labelled samples, for evaluation: a folder for each class, or arrays ``x`` and ``y``."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import InputSpec, LongArray
from onnxvitq.data.arrays import Array, Feed, Sample, chunks, load_npz, read_arrays, stack, static_batch
from onnxvitq.data.images import SUFFIXES, ImageReader, check_image_model, check_path, list_images, printable
from onnxvitq.data.preprocess import Preprocessing

LARGEST_LABEL = 2**31 - 1


class Labelled(ABC):
    """Labelled samples. Iterating gives (feed, labels), with labels (n,) int64.

    A feed holds ``batch`` samples, the last feed the rest. Where the model's batch is static, a feed holds that many, and the
    last one is filled up with repeated samples: labels is then shorter than the feed's batch, and only the first len(labels)
    outputs count.

    Args:
        inputs: the model's inputs.
        batch: samples a feed, where the model's batch is dynamic.
        description: see below.

    Attributes:
        description: one line that says what is read, and from where.
    """

    def __init__(self, inputs: Sequence[InputSpec], batch: int, description: str) -> None:
        self.description = description
        self._static = static_batch(inputs)
        self._batch = self._static or batch

    def __iter__(self) -> Iterator[tuple[Feed, LongArray]]:
        for pairs in chunks(self._pairs(), self._batch):
            samples = [sample for sample, _ in pairs]
            yield stack(samples, self._static or len(pairs)), np.array([label for _, label in pairs], np.int64)

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of samples. Exact after a pass."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(file, reason) of the files that could not be used; complete after a pass."""
        return ()

    @abstractmethod
    def _pairs(self) -> Iterator[tuple[Sample, int]]:
        """A new pass over the samples and their labels."""


class LabelledImages(Labelled):
    """A folder with one sub-folder for each class.

    Raises:
        DataError: no classes, a class without images, no readable image, or a model that does not take one image.
    """

    def __init__(
        self, folder: Path, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, batch: int
    ) -> None:
        where = printable(folder)
        spec, preprocessing = check_image_model(inputs, preprocessing, where)
        unreadable: list[tuple[str, str]] = []
        self._files: list[tuple[Path, int]] = []
        classes = _classes(folder)
        for label, name in classes:
            files, failed = list_images(folder / name)
            if not files:
                raise DataError(f"{where}/{printable(name)}", "expected images of this class, got none", "or remove it")
            self._files += [(path, label) for path in files]
            unreadable += [(f"{printable(name)}/{sub}", reason) for sub, reason in failed]
        loose = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        unreadable += [(printable(path.name), "not in the folder of a class") for path in loose]
        super().__init__(inputs, batch, f"{len(self._files)} image(s) of {len(classes)} class(es) in {where}")
        self._name = spec.name
        self._reader = ImageReader(folder, spec, preprocessing, unreadable)
        self._count = len(self._files)
        next(self._pairs())  # raises now if no image can be read

    @property
    def count(self) -> int:
        """Number of images; until the first pass is complete, unreadable ones may be among them."""
        return self._count

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(file, reason) of files that could not be used, by their path below the folder."""
        return self._reader.unreadable

    def _pairs(self) -> Iterator[tuple[Sample, int]]:
        used = 0
        for path, label in self._files:
            sample = self._reader.read(path)
            if sample is not None:
                used += 1
                yield {self._name: sample}, label
        if not used:
            raise self._reader.none_readable()
        self._count = used


class LabelledArrays(Labelled):
    """A .npz file with the inputs' arrays (``x`` for a one-input model) and ``y``, the class indices.

    Raises:
        DataError: an array is missing, does not fit, or has another number of samples than the others.
    """

    def __init__(
        self, path: Path, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, batch: int
    ) -> None:
        where = printable(path)
        arrays = load_npz(path, inputs, also=("y",))
        self._labels = _check_labels(arrays.pop("y"), f"y of {where}")
        self._readers = read_arrays(arrays, inputs, preprocessing, where)
        for name, reader in self._readers.items():
            if len(reader) != len(self._labels):
                raise DataError(where, f"expected a label for each of {len(reader)} {name}, got {len(self._labels)}")
            reader.check_values(range(len(reader)))
        super().__init__(inputs, batch, f"{len(self._labels)} labelled sample(s) in {where}")

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._labels)

    def _pairs(self) -> Iterator[tuple[Sample, int]]:
        for index, label in enumerate(self._labels):
            yield {name: reader.sample(index) for name, reader in self._readers.items()}, int(label)


def open_labelled(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    *,
    batch: int = 32,
) -> Labelled:
    """Labelled samples of a folder or a .npz file, as feeds and labels.

    Args:
        path: a folder with a sub-folder for each class, or a .npz file with ``x`` and ``y``. The classes are numbered
            in the order of their names; names that are all whole numbers are the class indices themselves.
        inputs: the model's inputs.
        preprocessing: of images; None where the model's input is not an image.
        batch: samples a feed, where the model's batch is dynamic.

    Raises:
        ConfigError: the batch is below 1.
        DataError: there is nothing at the path, or it is not labelled or does not fit the model.
    """
    if batch < 1:
        raise ConfigError("--batch", f"expected at least 1, got {batch}")
    static_batch(inputs)
    found = check_path(path)
    if found.is_dir():
        return LabelledImages(found, inputs, preprocessing, batch)
    if found.suffix.lower() == ".npz":
        return LabelledArrays(found, inputs, preprocessing, batch)
    raise DataError(printable(found), "expected a folder with a folder for each class, or a .npz file with x and y")


def is_labelled(path: Path, inputs: Sequence[InputSpec]) -> bool:
    """Whether a path holds labels: a folder with folders, or a .npz file with ``y`` that is no input's name."""
    try:
        if path.is_dir():
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir())
        if path.suffix.lower() != ".npz" or "y" in {spec.name for spec in inputs}:
            return False
        with zipfile.ZipFile(path) as archive:
            return "y.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # the error is raised when it is read


def _classes(folder: Path) -> list[tuple[int, str]]:
    """(class index, folder name) of each class; hidden folders are no classes."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(printable(folder), f"cannot be read: {error.strerror}") from error
    if not names:
        raise DataError(
            printable(folder), "expected a sub-folder for each class, got none", "or pass .npz with x and y"
        )
    if not all(name.isascii() and name.isdigit() for name in names):
        return list(enumerate(names))
    numbered = sorted((int(name), name) for name in names)
    if numbered[-1][0] > LARGEST_LABEL:
        raise DataError(printable(folder), f"expected class indices up to {LARGEST_LABEL}, got {numbered[-1][1]}")
    for (label, name), (following, other) in pairwise(numbered):
        if label == following:
            raise DataError(printable(folder), f"expected one folder a class, got {name} and {other} for {label}")
    return numbered


def _check_labels(labels: Array, where: str) -> LongArray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(where, f"expected integers (N,), got {labels.dtype} {list(labels.shape)}")
    if len(labels) and (labels.min() < 0 or labels.max() > LARGEST_LABEL):
        raise DataError(where, f"expected class indices, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
