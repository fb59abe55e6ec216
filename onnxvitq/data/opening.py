"""Calibration data opened for one model, with the preprocessing that options, metadata or a file beside the model state."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.core.errors import DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.config_files import find_config_file
from onnxvitq.data.images import SUFFIXES
from onnxvitq.data.preprocess import Preprocessing, resolve_preprocessing
from onnxvitq.data.source import Source, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessOptions:
    """The user's options for preprocessing.

    Attributes:
        flags: single settings by name, such as ``mean``; None is a setting that was not given.
        config_file: a preprocessor configuration; None where none was given.
    """

    flags: Mapping[str, object] = field(default_factory=dict)
    config_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedData:
    """Calibration data, ready to be read.

    Attributes:
        source: the samples.
        preprocessing: of images; None where the data are not images.
        origin: where the preprocessing was found, in words.
    """

    source: Source
    preprocessing: Preprocessing | None
    origin: str


def open_for_model(
    data: str | Path | Iterable[Any],
    model: Path,
    inputs: tuple[InputSpec, ...],
    metadata: Mapping[str, str],
    options: PreprocessOptions,
    limit: int | None = None,
) -> OpenedData:
    """Open calibration data as inputs of a model.

    Args:
        data: a path, arrays or an iterable, as ``source.open_source`` takes them.
        model: path of the model; a preprocessing file may lie beside it.
        inputs: of the model.
        metadata: of the model.
        options: the user's, for preprocessing.
        limit: number of samples, at most; None for all.

    Raises:
        DataError: there are no samples, they do not fit the model, or nothing states how images become inputs.
    """
    preprocessing, origin = preprocessing_for(inputs, metadata, options, find_config_file(model), data)
    source = open_source(data, inputs, preprocessing, limit=limit)
    return OpenedData(source=source, preprocessing=preprocessing, origin=origin)


def preprocessing_for(
    inputs: Sequence[InputSpec],
    metadata: Mapping[str, str],
    options: PreprocessOptions,
    beside: Path | None,
    data: object,
) -> tuple[Preprocessing | None, str]:
    """The preprocessing of images, and where it was found, in words.

    The preprocessing is None where the model does not take one image, and where nothing states it and the data may not need it.

    Args:
        inputs: of the model.
        metadata: of the model.
        options: the user's, for preprocessing.
        beside: a configuration file beside the model.
        data: a path, arrays or an iterable.

    Raises:
        DataError: the data are images or the user gave options, and no source states the whole preprocessing.
    """
    images = [spec for spec in inputs if len(spec.shape) == 4]
    if len(inputs) != 1 or not images:
        return None, "the model does not take one image"
    stated = any(value is not None for value in options.flags.values()) or options.config_file is not None
    config_file = options.config_file or beside
    try:
        return resolve_preprocessing(images[0], flags=options.flags, config_file=config_file, metadata=metadata)
    except DataError:
        if stated or _holds_images(data):
            raise
        return None, "unknown"


def gives_the_same_again(data: object) -> bool:
    """Whether every pass over data gives the same samples. Not known of a loader, say, which may shuffle at each pass."""
    return isinstance(data, str | os.PathLike | np.ndarray | Mapping | list | tuple)


def _holds_images(data: object) -> bool:
    """Whether ``data`` is a folder or an image file: arrays may be ready for the model as they are."""
    if not isinstance(data, str | os.PathLike):
        return False
    path = Path(data)
    return path.is_dir() or path.suffix.lower() in SUFFIXES
