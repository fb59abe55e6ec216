"""Arrays as samples: .npz and .npy files, checks against the model's inputs, and stacking into feeds.

Floating-point arrays are model-ready and only checked. uint8 arrays for a float image input are images, and go
through the preprocessing. Anything else must be of the input's own kind of number.
"""

import hashlib
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.fields import CHANNELS
from onnxvitq.data.images import fits, is_image_input, printable
from onnxvitq.data.preprocess import Preprocessing, preprocess_image

Array = NDArray[Any]
# Input name -> values: of one sample, without the batch axis; of a feed, with it.
Sample = dict[str, Array]
Feed = dict[str, Array]

T = TypeVar("T")

# numpy and zipfile have no common error for damaged files.
LOAD_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class ArrayReader:
    """Turns the rows of one input's array into samples, after checking the array as a whole.

    Args:
        spec: the input.
        preprocessing: for uint8 images; None where the model takes none.
        array: (N, ...), N samples. Floats and other numbers have the input's rank and static dimensions; uint8
            images are (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3.
        where: the array's name, for messages.

    Raises:
        DataError: wrong type of number, rank, dimension or number of channels, or no sample.
    """

    def __init__(self, spec: InputSpec, preprocessing: Preprocessing | None, array: Array, where: str) -> None:
        self._spec, self._array, self._where = spec, array, where
        self._images = None
        if array.dtype == np.uint8 and np.dtype(spec.dtype) != np.uint8 and preprocessing and is_image_input(spec):
            self._images = preprocessing
            self._channel_axis = self._find_channels(preprocessing)
        else:
            self._check()
        if not len(array):
            raise self._error("no samples")

    def __len__(self) -> int:
        return len(self._array)

    def row(self, index: int) -> Array:
        """One sample, unchanged."""
        return np.asarray(self._array[index])

    def sample(self, index: int) -> Array:
        """One sample as the model reads it, without the batch axis.

        Raises:
            DataError: a value is NaN or infinite, or preprocessing gives a size that the model does not take.
        """
        row = self.row(index)
        if self._images is None:
            with np.errstate(over="ignore"):  # a value beyond the input's type becomes infinite, which is found below
                sample = row.astype(self._spec.dtype)
            if not np.isfinite(sample).all():
                raise DataError(self._where, f"sample {index} holds NaN or infinite values as {self._spec.dtype}")
            return sample
        if row.ndim == 3:
            row = np.moveaxis(row, self._channel_axis - 1, -1)
            row = row[..., 0] if row.shape[-1] == 1 else row
        try:
            sample = preprocess_image(Image.fromarray(np.ascontiguousarray(row)), self._images)
        except DataError as error:
            raise self._error(error.problem) from error
        if not fits(self._spec.shape[1:], sample.shape):
            raise self._error(f"a preprocessed image is {list(sample.shape)}")
        return sample.astype(self._spec.dtype)

    def check_values(self, indices: Sequence[int]) -> None:
        """Raise what ``sample`` would raise for any of these samples; of images, all of one size, only the first is checked."""
        for index in indices[:1] if self._images is not None else indices:
            self.sample(index)

    def _find_channels(self, preprocessing: Preprocessing) -> int:
        """The channel axis of an array of images (N, ..); the array's rank, 3, where it has none."""
        shape, hint = self._array.shape, "give (N, H, W), (N, H, W, C) or (N, C, H, W)"
        channels = set(CHANNELS.values())
        # (H, W, 3) would otherwise be read as H grey images, 3 pixels wide.
        one_image = len(shape) == 3 and (shape[2] in channels or (shape[0] == 3 and preprocessing.channels == 3))
        if one_image:
            raise self._error("one image without an axis of samples, or very narrow ones", hint)
        if len(shape) == 3:
            return 3
        if len(shape) != 4:
            raise self._error(f"rank {len(shape)}", hint)
        for axis in (3, 1):
            if shape[axis] in channels:
                return axis
        raise self._error("no axis of 1 or 3 channels", hint)

    def _check(self) -> None:
        """Rank, dimensions and type of an array that goes to the model as it is."""
        array, wanted = self._array, np.dtype(self._spec.dtype)
        if array.dtype.kind not in "fiub":
            raise self._error("not an array of numbers")
        if not np.can_cast(array.dtype, wanted, "same_kind") or (wanted.kind == "f" and array.dtype.kind != "f"):
            hint = "uint8 arrays are taken as images" if is_image_input(self._spec) and array.dtype != np.uint8 else ""
            raise self._error("wrong type of number", hint)
        if array.ndim != len(self._spec.shape):
            raise self._error(f"rank {array.ndim}", "the first axis counts the samples")
        if not fits(self._spec.shape[1:], array.shape[1:]):
            raise self._error("wrong dimensions")

    def _error(self, problem: str, hint: str = "") -> DataError:
        """Names the array and both shapes."""
        takes = ", ".join(["N", *("any" if side is None else str(side) for side in self._spec.shape[1:])])
        gives = ", ".join(str(side) for side in self._array.shape)
        expected = f"input {self._spec.name} takes {self._spec.dtype} ({takes})"
        return DataError(self._where, f"{problem}: {expected}, got {self._array.dtype} ({gives})", hint)


def read_arrays(
    arrays: Mapping[str, Any], inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, where: str
) -> dict[str, ArrayReader]:
    """A reader for each input, from the arrays of a file or of the caller; arrays of other names are ignored.

    Raises:
        DataError: an array is missing or does not fit, or they do not all have the same number of samples.
    """
    keys = array_keys(arrays, inputs, where)
    preprocessing = preprocessing if len(inputs) == 1 else None
    readers = {}
    for spec in inputs:
        key = keys[spec.name]
        name = f"{key} of {where}" if key else where
        readers[spec.name] = ArrayReader(spec, preprocessing, as_array(arrays[key], name), name)
    if len({len(reader) for reader in readers.values()}) > 1:
        counts = ", ".join(f"{keys[name]} {len(reader)}" for name, reader in readers.items())
        raise DataError(where, f"expected the same number of samples for every input, got {counts}")
    return readers


def as_array(value: Any, where: str) -> Array:
    """A numpy array from an array of any library that offers ``__array__``.

    Raises:
        DataError: the value is no array, or has no first axis.
    """
    if not hasattr(value, "__array__"):
        raise DataError(where, f"expected an array, got {type(value).__name__}", "a feed is a dictionary of arrays")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(where, f"cannot be read as an array: {error}") from error
    if array.ndim == 0:
        raise DataError(where, "expected an array with a first axis of samples, got a single value")
    return array


def array_keys(names: Collection[str], inputs: Sequence[InputSpec], where: str) -> dict[str, str]:
    """Input name -> name of its array: its own; for a one-input model, else ``x``, or the only array there is.

    Raises:
        DataError: an input has no array.
    """
    keys = {spec.name: spec.name for spec in inputs if spec.name in names}
    if not keys and len(inputs) == 1 and ("x" in names or len(names) == 1):
        keys = {inputs[0].name: "x" if "x" in names else next(iter(names))}
    missing = [spec.name for spec in inputs if spec.name not in keys]
    if missing:
        expected = f"{missing[0]}, or x" if len(inputs) == 1 else ", ".join(missing)
        raise DataError(where, f"expected an array named {expected}, got {', '.join(sorted(names)) or 'none'}")
    return keys


def load_npz(path: Path, inputs: Sequence[InputSpec], *, also: Collection[str] = ()) -> dict[str, Array]:
    """The arrays of a .npz file for the inputs, and those named in ``also``; nothing pickled is ever loaded.

    Raises:
        DataError: the file is damaged or holds Python objects, or an array is missing.
    """
    where = printable(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Opened here, for numpy leaves the file open when the archive is damaged.
            with path.open("rb") as file:
                archive = np.load(file, allow_pickle=False)
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise DataError(where, "expected a .npz archive, got a single array", "name it .npy")
                wanted = {*array_keys([key for key in archive.files if key not in also], inputs, where).values(), *also}
                missing = sorted(wanted.difference(archive.files))
                if missing:
                    raise DataError(where, f"expected an array named {missing[0]}, got {', '.join(archive.files)}")
                return {key: archive[key] for key in sorted(wanted)}
        except LOAD_ERRORS as error:
            raise DataError(where, f"cannot be loaded as .npz: {error}") from error


def load_npy(path: Path) -> Array:
    """The array of a .npy file; it is mapped into memory, and read from disk when it is used.

    Raises:
        DataError: the file is damaged or holds Python objects.
    """
    where = printable(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except LOAD_ERRORS as error:
            raise DataError(where, f"cannot be loaded as .npy: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(where, "expected a single array, got a .npz archive", "name it .npz")
    return array


def static_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The model's batch size, the first size of its inputs; None where it is dynamic.

    Raises:
        DataError: there is no input, or the inputs do not agree.
    """
    if not inputs:
        raise DataError("model", "expected at least one input, got none")
    sizes = {spec.shape[0] if spec.shape else 1 for spec in inputs} - {None}
    if len(sizes) > 1 or not all(spec.shape for spec in inputs):
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise DataError("model", f"expected inputs with the same first (batch) dimension, got {shapes}")
    return sizes.pop() if sizes else None


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` consecutive items, the last one shorter; no item is taken before its list is asked for."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def sample_digests(feed: Feed) -> list[bytes]:
    """SHA-256 of each sample of a feed, over the values that the model reads; the file it came from does not matter."""
    named = sorted(feed.items())
    return [
        hashlib.sha256(b"".join(name.encode() + b"\0" + values[row].tobytes() for name, values in named)).digest()
        for row in range(len(named[0][1]))
    ]


def stack(samples: Sequence[Sample], size: int) -> Feed:
    """One feed with a batch of ``size``; fewer samples are repeated from the first on until it is full.

    Raises:
        DataError: the samples differ in shape.
    """
    feed = {}
    for name, first in samples[0].items():
        rows = [sample[name] for sample in samples]
        different = next((row.shape for row in rows if row.shape != first.shape), None)
        if different is not None:
            problem = f"expected samples of one shape in a batch, got {list(first.shape)} and {list(different)}"
            raise DataError(name, problem, "pass --resize HEIGHTxWIDTH")
        feed[name] = np.stack([rows[index % len(rows)] for index in range(size)])
    return feed
