"""Samples for calibration: ``open_source`` turns folders, files, arrays and iterables into one kind of source."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.arrays import (
    Array,
    ArrayReader,
    Feed,
    Sample,
    chunks,
    load_npy,
    load_npz,
    read_arrays,
    stack,
    static_batch,
)
from onnxvitq.data.images import (
    SUFFIXES,
    ImageReader,
    check_image_model,
    check_path,
    file_digest,
    list_images,
    printable,
)
from onnxvitq.data.preprocess import Preprocessing


class Source(ABC):
    """Feeds for a model. Iterating gives dictionaries from input name to array, batch axis first.

    A feed holds one sample, or N samples where the model's batch is a static N; then the last feed is filled up by repeating
    its own samples. Nothing is read ahead of the feed asked for.

    Attributes:
        description: one line that says what is read, and from where.
        repeatable: whether it can be iterated again. Folders, files and arrays can (and give the same feeds), and so can lists
            and other iterables that start anew; generators and readers that cannot rewind cannot.
    """

    repeatable = True

    def __init__(self, inputs: Sequence[InputSpec], description: str) -> None:
        self._inputs = tuple(inputs)
        self.description = description
        self._batch = static_batch(inputs) or 1

    def __iter__(self) -> Iterator[Feed]:
        for samples in chunks(self._samples(), self._batch):
            yield stack(samples, self._batch)

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of samples; None for an iterable of unknown length. Exact after a pass."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(file, reason) of the files that could not be used; complete after a pass."""
        return ()

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, over the names and contents of the samples used; "" for an iterable."""
        return ""

    @abstractmethod
    def _samples(self) -> Iterator[Sample]:
        """A new pass over the samples."""


class ImageSource(Source):
    """Images of a folder, or one image file.

    With a limit below the number of files, the sorted list is cut into that many runs of equal length, and each gives
    its first image that can be read: so every class folder is seen, and unreadable files do not cost samples.

    Raises:
        DataError: the model does not take one image, there is no image, or none can be read.
    """

    def __init__(
        self, path: Path, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, limit: int | None
    ) -> None:
        where = printable(path)
        root = path if path.is_dir() else path.parent
        files, unreadable = list_images(path) if path.is_dir() else ((path,), ())
        spec, preprocessing = check_image_model(inputs, preprocessing, where)
        if not files:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise DataError(where, f"expected image files ({kinds}), got none", _first_reason(unreadable))
        slots = min(limit or len(files), len(files))
        super().__init__(inputs, f"{slots} of {len(files)} image(s) in {where}")
        self._slots = [files[i * len(files) // slots : (i + 1) * len(files) // slots] for i in range(slots)]
        self._name = spec.name
        self._reader = ImageReader(root, spec, preprocessing, unreadable)
        self._count = slots
        self._digest = ""
        next(self._samples())  # raises now if no image can be read, not after the model has been built

    @property
    def count(self) -> int:
        """Number of images; until the first pass is complete, unreadable ones may be among them."""
        return self._count

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(file, reason) of unreadable files, by their path below the folder."""
        return self._reader.unreadable

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents of the images used; reads them if no pass has been completed yet."""
        if not self._digest:
            for _ in self._samples():
                pass
        return self._digest

    def _samples(self) -> Iterator[Sample]:
        contents = hashlib.sha256()
        used = 0
        for path, sample in chain.from_iterable(islice(self._readable(slot), 1) for slot in self._slots):
            if not self._digest:
                contents.update(self._reader.name(path).encode() + b"\0" + file_digest(path))
            used += 1
            yield {self._name: sample}
        if not used:
            raise self._reader.none_readable()
        self._count = used
        self._digest = self._digest or contents.hexdigest()

    def _readable(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Array]]:
        for path in paths:
            sample = self._reader.read(path)
            if sample is not None:
                yield path, sample


class ArraySource(Source):
    """Arrays whose first axis counts the samples; a limit takes evenly spaced ones.

    Raises:
        DataError: an array does not fit its input, or a sample used holds NaN or infinite values.
    """

    def __init__(
        self, readers: Mapping[str, ArrayReader], inputs: Sequence[InputSpec], where: str, limit: int | None
    ) -> None:
        total = min(len(reader) for reader in readers.values())
        used = min(limit or total, total)
        super().__init__(inputs, f"{used} of {total} sample(s) in {where}")
        self._readers = readers
        self._indices = [i * total // used for i in range(used)]
        self._digest = ""
        for reader in readers.values():
            reader.check_values(self._indices)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._indices)

    @property
    def digest(self) -> str:
        """SHA-256 over the names, types and values of the samples used."""
        if not self._digest:
            contents = hashlib.sha256()
            for name, reader in sorted(self._readers.items()):
                for index in self._indices:
                    row = reader.row(index)
                    contents.update(f"{name} {row.dtype.str} {row.shape}".encode() + b"\0" + row.tobytes())
            self._digest = contents.hexdigest()
        return self._digest

    def _samples(self) -> Iterator[Sample]:
        for index in self._indices:
            yield {name: reader.sample(index) for name, reader in self._readers.items()}


class FeedSource(Source):
    """A Python iterable of feeds, or a reader with onnxruntime's ``get_next()``.

    A feed is a dictionary from input name to array, or for a one-input model an array; the first axis is the batch, of
    any size: it is cut into samples. Keys that are no input's name are ignored. A limit takes the first samples and
    asks for no more.
    """

    def __init__(
        self, feeds: Any, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, limit: int | None
    ) -> None:
        kind = type(feeds).__name__
        super().__init__(inputs, f"feeds from a Python {kind}")
        self._feeds, self._preprocessing, self._limit, self._kind = feeds, preprocessing, limit, kind
        self._started = False
        self._count: int | None = None
        self._reader = callable(getattr(feeds, "get_next", None))
        self.repeatable = not isinstance(feeds, Iterator)
        if self._reader:
            self.repeatable = callable(getattr(feeds, "rewind", None))
        if isinstance(feeds, list | tuple):
            total = sum(len(next(iter(self._read(feed, index).values()))) for index, feed in enumerate(feeds))
            self._count = min(limit or total, total)

    @property
    def count(self) -> int | None:
        """Number of samples: known beforehand for lists and tuples, else after a pass."""
        return self._count

    def _samples(self) -> Iterator[Sample]:
        if self._started and not self.repeatable:
            # Whatever is left would be other samples than those of the first pass.
            hint = "pass a list, or an object whose __iter__ starts anew"
            raise DataError(f"Python {self._kind}", "expected feeds for another pass, but it gives them once", hint)
        count = 0
        for sample in islice(self._all_samples(), self._limit):
            count += 1
            yield sample
        if not count:
            raise DataError(f"Python {self._kind}", "expected at least one sample, got none")
        self._count = count

    def _all_samples(self) -> Iterator[Sample]:
        for index, feed in enumerate(self._iterate()):
            readers = self._read(feed, index)
            for row in range(len(next(iter(readers.values())))):
                yield {name: reader.sample(row) for name, reader in readers.items()}

    def _iterate(self) -> Iterator[Any]:
        again, self._started = self._started, True
        if not self._reader:
            yield from self._feeds
            return
        if again:
            self._feeds.rewind()
        while (feed := self._feeds.get_next()) is not None:
            yield feed

    def _read(self, feed: Any, index: int) -> dict[str, ArrayReader]:
        where = f"feed {index}"
        return read_arrays(_named(feed, self._inputs, where), self._inputs, self._preprocessing, where)


def open_source(
    data: object,
    inputs: tuple[InputSpec, ...],
    preprocessing: Preprocessing | None,
    *,
    limit: int | None = None,
) -> Source:
    """The samples of a path, of arrays or of an iterable, as feeds for a model.

    Args:
        data: a path: a folder of images, an image, a .npz (arrays named as the inputs; for a one-input model also
            ``x`` or a single array) or a .npy file. Or an array, or a dictionary of arrays, as such a file would hold.
            Or any iterable of feeds, or an object with ``get_next()``; see `FeedSource`. Floating-point arrays are
            taken as ready for the model, uint8 arrays as images: (N, H, W), (N, H, W, C) or (N, C, H, W).
        inputs: the model's inputs.
        preprocessing: of images; None where the model's input is not an image.
        limit: number of samples, at most; None for all.

    Raises:
        ConfigError: the limit is below 1.
        DataError: there are no samples, or they do not fit the model. Samples of an iterable, and images behind the first
            readable one, are checked only when they are read.
    """
    if limit is not None and limit < 1:
        raise ConfigError("--limit", f"expected at least 1 sample, got {limit}")
    static_batch(inputs)
    if isinstance(data, str | os.PathLike):
        return _open_path(data, inputs, preprocessing, limit)
    if isinstance(data, np.ndarray | Mapping):
        where = "the data given"
        return ArraySource(read_arrays(_named(data, inputs, where), inputs, preprocessing, where), inputs, where, limit)
    if isinstance(data, Iterable) or callable(getattr(data, "get_next", None)):
        return FeedSource(data, inputs, preprocessing, limit)
    raise DataError("data", f"expected a path, arrays or an iterable of feeds, got {type(data).__name__}")


def _open_path(
    data: str | os.PathLike[str], inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, limit: int | None
) -> Source:
    path = check_path(data)
    where, suffix = printable(path), path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return ImageSource(path, inputs, preprocessing, limit)
    if suffix == ".npz":
        readers = read_arrays(load_npz(path, inputs), inputs, preprocessing, where)
        return ArraySource(readers, inputs, where, limit)
    if suffix == ".npy":
        readers = read_arrays(_named(load_npy(path), inputs, where), inputs, preprocessing, where)
        return ArraySource(readers, inputs, where, limit)
    raise DataError(where, f"expected a folder, an image, .npz or .npy, got a file {suffix or 'without suffix'}")


def _named(data: Any, inputs: Sequence[InputSpec], where: str) -> Mapping[str, Any]:
    """A dictionary unchanged; anything else as the array of the only input, under the name ""."""
    if isinstance(data, Mapping):
        return data
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(where, f"expected an array for each of {names}, got one {type(data).__name__}", "pass .npz")
    return {"": data}


def _first_reason(unreadable: Sequence[tuple[str, str]]) -> str:
    return f"{unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
