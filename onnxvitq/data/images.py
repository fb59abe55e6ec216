"""Image files: those in a folder, and the model-ready sample of each, or the reason why there is none."""

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.preprocess import Preprocessing, preprocess_image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The formats that these files may hold, whatever their suffix says. PIL knows others; some of them run other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# PIL has no common error for broken files: its decoders raise the error in which their parsing ended.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def is_image_input(spec: InputSpec) -> bool:
    """Whether a model's input is an image: floating point, of rank 4."""
    return len(spec.shape) == 4 and np.issubdtype(np.dtype(spec.dtype), np.floating)


def fits(takes: Sequence[int | None], gives: Sequence[int]) -> bool:
    """Whether a shape matches one that the model takes, in which None stands for any size."""
    return len(takes) == len(gives) and all(side in {None, got} for side, got in zip(takes, gives, strict=True))


def check_path(data: str | os.PathLike[str]) -> Path:
    """A path that exists.

    Raises:
        DataError: there is nothing at the path, or it cannot be accessed.
    """
    if not os.fspath(data):
        raise DataError("data", "expected a folder or a file, got an empty path")
    path = Path(data)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise DataError(printable(path), f"expected a folder or a file, got {error}") from error
    return path


def check_image_model(
    inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, where: str
) -> tuple[InputSpec, Preprocessing]:
    """The image input of a model, and its preprocessing.

    Raises:
        DataError: the model's input is not one image.
    """
    if len(inputs) != 1 or not is_image_input(inputs[0]) or preprocessing is None:
        takes = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs)
        problem = f"images need a model with one float input of rank 4, this one takes {takes}"
        raise DataError(where, problem, "pass a .npz file with an array for each input")
    return inputs[0], preprocessing


def list_images(folder: Path) -> tuple[tuple[Path, ...], tuple[tuple[str, str], ...]]:
    """All files in a folder and its sub-folders that are images by their suffix, sorted by path.

    Linked folders are followed, each folder once; hidden files and folders (a leading dot) are passed over.

    Returns:
        The files, and (sub-folder, reason) for each sub-folder that cannot be read.
    """
    files: list[Path] = []
    unreadable: list[tuple[str, str]] = []
    seen: set[str] = set()

    def note(error: OSError) -> None:
        unreadable.append((printable(os.path.relpath(error.filename, folder)), f"cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(parent)
        # A link to a folder above would otherwise be walked for ever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        files.extend(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(files, key=lambda path: path.relative_to(folder).parts)), tuple(unreadable)


def read_image(path: Path) -> Image.Image:
    """The first picture of an image file, decoded whole.

    Raises:
        DataError: the file is empty, truncated, no image, or would decode to more pixels than PIL deems safe.
    """
    with warnings.catch_warnings():
        # Warnings about odd metadata do not matter here; those about pictures of up to twice PIL's limit of pixels do.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if path.stat().st_size == 0:
                raise DataError(printable(path), "the file is empty")
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image.copy()
        except UnidentifiedImageError as error:
            raise DataError(printable(path), "not an image") from error
        except DECODER_ERRORS as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError(printable(path), f"cannot be decoded: {reason}") from error


class ImageReader:
    """Reads images below a folder for one input, and records those that cannot be used, with the reason.

    Args:
        root: folder that the images' names are relative to.
        spec: the model's image input.
        preprocessing: of each image.
        unreadable: (name, reason) of files that are known to be unreadable.
    """

    def __init__(
        self,
        root: Path,
        spec: InputSpec,
        preprocessing: Preprocessing,
        unreadable: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._root, self._spec, self._preprocessing = root, spec, preprocessing
        self._unreadable = dict(unreadable)

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of the files that could not be used so far."""
        return tuple(sorted(self._unreadable.items()))

    def name(self, path: Path) -> str:
        """The path below the root, with / and in printable characters."""
        return printable(path.relative_to(self._root).as_posix())

    def read(self, path: Path) -> NDArray[Any] | None:
        """The sample of an image, (C, H, W) or (H, W, C), in the input's dtype; None if unusable, the reason recorded."""
        name = self.name(path)
        if name in self._unreadable:
            return None
        try:
            sample = preprocess_image(read_image(path), self._preprocessing)
        except DataError as error:
            self._unreadable[name] = error.problem
            return None
        if not fits(self._spec.shape[1:], sample.shape):
            # Only where the preprocessing leaves the size to the image.
            takes, gives = list(self._spec.shape[1:]), list(sample.shape)
            self._unreadable[name] = f"the model takes {takes}, this image gives {gives}"
            return None
        return sample.astype(self._spec.dtype, copy=False)

    def none_readable(self) -> DataError:
        """The error to raise when no image at all could be used: names the first three."""
        named = "; ".join(f"{name}: {reason}" for name, reason in self.unreadable[:3])
        return DataError(printable(self._root), f"none of {len(self._unreadable)} image(s) can be used: {named}")


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(printable(path), f"cannot be read: {error.strerror}") from error


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text for terminals and files: bytes that are not UTF-8 are written as escapes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
