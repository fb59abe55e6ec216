"""From an image to the model's input: the steps, resolved from every source that states them, and their execution.

The pixels are those of torchvision, timm and Hugging Face, whose configuration files are read here: alpha is
dropped (not composited), sizes are truncated, a crop larger than the image is padded with black, and the order is
resize, crop, scale, normalise. Statistics of other pixels than those that the model will get later would be of no use.
"""

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import FloatArray, InputSpec
from onnxvitq.data.config_files import document_fields, own_fields, read_config_file
from onnxvitq.data.fields import CHANNELS, PARSERS, Interpolation, Layout, Mode

PREPROCESSING_KEY = "onnxvitq.preprocessing"
EXPORTED_KEY = "preprocessor_config.json"  # the text of that file, as ``onnxvitq export`` stores it

# The options' names, where they differ from the fields'.
FLAG_FIELDS = {"color": "mode"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Most pixels of a resized image: 400 MB in colour.
MAX_PIXELS = 2**27
FROM_SHAPE, FROM_DEFAULTS = "the model's input", "defaults"

# Field -> (value, name of the source that it came from).
Chosen = dict[str, tuple[object, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The steps from an image to the model's input: convert, resize, crop, scale, normalise, lay out.

    Attributes:
        mode: colours after conversion, "L" (grey, 1 channel) or "RGB" (3 channels).
        mean: subtracted from each channel after scaling, one number a channel.
        std: divides each channel after that, one number a channel.
        resize: shortest side in pixels, the other one in proportion; or (height, width); None keeps the size.
        crop: (height, width) in pixels cut from the centre, padded with black where the image is smaller; None for no crop.
        interpolation: filter of the resize.
        scale: multiplies the values 0 to 255.
        layout: order of the axes, "NCHW" or "NHWC".

    Raises:
        ConfigError: a value is not allowed, or mean and std do not have one number a channel.
    """

    mode: Mode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"
    scale: float = 1 / 255
    layout: Layout = "NCHW"

    def __post_init__(self) -> None:
        for name, parse in PARSERS.items():
            object.__setattr__(self, name, parse(getattr(self, name), f"preprocessing: {name}"))
        for name in ("mean", "std"):
            values = _one_a_channel(getattr(self, name), self.channels)
            if values is None:
                raise ConfigError(f"preprocessing: {name}", f"expected one number for mode {self.mode}, got 3")
            object.__setattr__(self, name, values)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return CHANNELS[self.mode]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every preprocessed image; None where it depends on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` gives the equal record back."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, object]) -> Self:
        """The record that `to_dict` wrote.

        Raises:
            ConfigError: an unknown key, a missing mode, mean or std, or a wrong value.
        """
        values = own_fields(document, "preprocessing")
        missing = [name for name in ("mode", "mean", "std") if name not in values]
        if missing:
            raise ConfigError("preprocessing", f"expected the key {missing[0]!r}, got none")
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every value

    def describe(self) -> str:
        """The steps as one line of text."""
        steps: list[str] = [self.mode]
        if self.resize is not None:
            to = f"shortest side to {self.resize}" if isinstance(self.resize, int) else f"to {_by(self.resize)}"
            steps.append(f"resize {to} ({self.interpolation})")
        if self.crop is not None:
            steps.append(f"centre crop {_by(self.crop)}")
        steps.append("x 1/255" if self.scale == 1 / 255 else f"x {self.scale:g}")
        steps += [f"{name} {', '.join(f'{value:g}' for value in getattr(self, name))}" for name in ("mean", "std")]
        return "; ".join([*steps, self.layout])


def resolve_preprocessing(
    spec: InputSpec, *, flags: Mapping[str, object], config_file: Path | None, metadata: Mapping[str, str]
) -> tuple[Preprocessing, str]:
    """The preprocessing for an image input, each field from the first source that states it.

    The sources, in order: the flags; a configuration file; the model's own metadata; the input's shape (1 channel: L,
    mean and std 0.5; 3 channels: RGB, ImageNet's mean and std; resize to the input's height and width; no crop) and
    defaults. A resize of the shortest side on which no source states a crop is cropped to the input's size, or to
    that square where the input is dynamic. The layout follows the shape where that decides it. Where the channels are
    dynamic, the mode or the number of means decides, else there are 3.

    Args:
        spec: the image input, rank 4.
        flags: options mean, std, resize, crop, interpolation, scale and color, as values or as text; None is not given.
        config_file: given by the user or found beside the model (`config_files.find_config_file`).
        metadata: the model's metadata; the keys `PREPROCESSING_KEY` and `EXPORTED_KEY` are read.

    Returns:
        The preprocessing, and a text that says where each field came from.

    Raises:
        ConfigError: a source states a value that is not allowed.
        DataError: the sources do not fit the model's input, or none states a size.
    """
    if len(spec.shape) != 4:
        raise DataError(spec.name, f"expected an image input of rank 4, got shape {list(spec.shape)}", "pass .npz data")
    chosen: Chosen = {}
    for source, stated in _sources(flags, config_file, metadata):
        for name, (value, where) in stated.items():
            if name not in chosen:
                chosen[name] = PARSERS[name](value, where), source
    chosen["layout"] = _layout(spec, chosen)
    nhwc = chosen["layout"][0] == "NHWC"
    channels, height, width = (spec.shape[axis] for axis in ((3, 1, 2) if nhwc else (1, 2, 3)))
    chosen["mode"] = _mode(spec, channels, chosen)
    _fill_size(height, width, chosen)
    _fill_values(spec, chosen)
    preprocessing = Preprocessing(**{name: value for name, (value, _) in chosen.items()})  # type: ignore[arg-type]
    _check_size(spec, (height, width), preprocessing, chosen)
    return preprocessing, _origins(chosen)


def preprocess_image(image: Image.Image, preprocessing: Preprocessing) -> FloatArray:
    """The model-ready array of one image: (C, H, W) or (H, W, C) float32, by the layout. Never modifies the image.

    The camera's orientation tag is applied first. Every mode is converted as PIL's ``convert`` does (alpha is dropped,
    palettes are looked up), but 16-bit grey is scaled to 8 bit instead of clipped.

    Raises:
        DataError: pixels without a known range, a mode that PIL cannot convert, or a resized image of too many pixels.
    """
    if not image.width or not image.height:
        raise DataError("image", f"expected pixels, got a size of {image.height} x {image.width}")
    image = _resize(_to_mode(_upright(image), preprocessing.mode), preprocessing)
    if preprocessing.crop is not None:
        image = _centre_crop(image, preprocessing.crop)
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, preprocessing.channels)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    values = (pixels * np.float32(preprocessing.scale) - mean) / std
    return np.ascontiguousarray(values if preprocessing.layout == "NHWC" else values.transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored by the camera's orientation tag; unchanged where the tags are damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
            return image  # what PIL raises on damaged tags; the pixels are good


def _sources(
    flags: Mapping[str, object], config_file: Path | None, metadata: Mapping[str, str]
) -> list[tuple[str, dict[str, tuple[object, str]]]]:
    """(name of a source, field -> (value, where it is stated)), the source with the highest priority first."""
    given: dict[str, tuple[object, str]] = {}
    for name, value in flags.items():
        field = FLAG_FIELDS.get(name, name)
        if field not in PARSERS or field == "layout" or name == "mode":
            raise ConfigError(f"--{name}", "no such preprocessing option")
        if value is not None:
            given[field] = (value, f"--{name}")
    sources = [("flags", given)]
    if config_file is not None:
        stated = read_config_file(config_file)
        where = str(config_file)
        sources.append((config_file.name, {name: (value, f"{where}: {name}") for name, value in stated.items()}))
    for key, fields_of in ((PREPROCESSING_KEY, own_fields), (EXPORTED_KEY, document_fields)):
        if key in metadata:
            where = f"model metadata {key}"
            stated = fields_of(_parsed(metadata[key], where), where)
            sources.append(
                ("the model's metadata", {name: (value, f"{where}: {name}") for name, value in stated.items()})
            )
    return sources


def _parsed(text: str, where: str) -> Mapping[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(where, f"expected JSON, got an error: {error}") from error
    if not isinstance(document, Mapping):
        raise ConfigError(where, f"expected a dictionary, got {type(document).__name__}")
    return document


def _layout(spec: InputSpec, chosen: Chosen) -> tuple[object, str]:
    first, last = spec.shape[1], spec.shape[3]
    if last in {1, 3} and first not in {1, 3}:
        return "NHWC", FROM_SHAPE
    if first is not None or last is not None:
        return "NCHW", FROM_SHAPE
    return chosen.get("layout", ("NCHW", FROM_DEFAULTS))


def _mode(spec: InputSpec, channels: int | None, chosen: Chosen) -> tuple[object, str]:
    """The mode, from the model's channels where they are static."""
    if channels is None:
        if "mode" in chosen:
            return chosen["mode"]
        for name in ("mean", "std"):
            values, source = chosen.get(name, ((), ""))
            if isinstance(values, tuple) and len(values) == 3:
                return "RGB", source
        return "RGB", FROM_DEFAULTS
    if channels not in {1, 3}:
        raise DataError(
            spec.name, f"expected 1 or 3 channels for images, got shape {list(spec.shape)}", "pass .npz data"
        )
    mode, source = chosen.get("mode", ("L" if channels == 1 else "RGB", FROM_SHAPE))
    if mode != ("L" if channels == 1 else "RGB"):
        raise DataError(spec.name, f"the model takes {channels} channel(s), {source} says mode {mode}")
    return mode, source


def _fill_size(height: int | None, width: int | None, chosen: Chosen) -> None:
    """Complete resize and crop from the input's height and width."""
    whole = None if height is None or width is None else (height, width)
    if "resize" not in chosen and whole is not None:
        chosen["resize"] = whole, FROM_SHAPE
    side, source = chosen.get("resize", (None, ""))
    if "crop" not in chosen and isinstance(side, int):
        chosen["crop"] = (whole, FROM_SHAPE) if whole else ((side, side), source)


def _fill_values(spec: InputSpec, chosen: Chosen) -> None:
    """Set the defaults of fields that no source states."""
    grey = chosen["mode"][0] == "L"
    for name in ("mean", "std"):
        values, source = chosen.setdefault(name, ((0.5,) if grey else IMAGENET[name], FROM_DEFAULTS))
        if grey and isinstance(values, tuple) and len(values) != 1:
            raise DataError(spec.name, f"the model takes 1 channel, {source} gives {len(values)} numbers for {name}")
    for item in fields(Preprocessing):
        if item.name not in chosen and item.name not in {"resize", "crop"}:
            chosen[item.name] = item.default, FROM_DEFAULTS


def _check_size(
    spec: InputSpec, wanted: tuple[int | None, int | None], preprocessing: Preprocessing, chosen: Chosen
) -> None:
    got = preprocessing.size
    if not {"resize", "crop"} & chosen.keys():
        hint = "pass --resize HEIGHTxWIDTH"
        raise DataError(spec.name, f"the input's height and width are dynamic {list(spec.shape)}, no size given", hint)
    if got is not None and any(side not in {None, final} for side, final in zip(wanted, got, strict=True)):
        source = chosen["crop" if preprocessing.crop else "resize"][1]
        takes = " x ".join("any" if side is None else str(side) for side in wanted)
        problem = f"the model takes {takes} (height x width), the preprocessing from {source} gives {_by(got, ' x ')}"
        raise DataError(spec.name, problem, "pass --resize or --crop")


def _origins(chosen: Chosen) -> str:
    by_source: dict[str, list[str]] = {}
    for name in PARSERS:
        if name in chosen:
            by_source.setdefault(chosen[name][1], []).append(name)
    return "; ".join(f"{', '.join(names)} from {source}" for source, names in by_source.items())


def _one_a_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...] | None:
    """One value a channel, a single value repeated; None where there are neither one nor ``channels``."""
    if len(values) == 1:
        return values * channels
    return values if len(values) == channels else None


def _to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == "F":
        raise DataError("image", "floating-point pixels have no fixed range", "pass arrays as .npz")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # PIL opens 16-bit PNG, PGM and TIFF files in these modes, and its own conversion to L clips at 255.
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise DataError("image", f"expected 16-bit pixels, got {pixels.min()} to {pixels.max()}")
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    elif image.mode in {"P", "PA"}:
        # By way of RGBA, or PIL warns about palettes with transparency.
        image = image.convert("RGBA")
    try:
        return image.convert(mode)
    except ValueError as error:
        raise DataError("image", f"mode {image.mode} cannot be converted to {mode}") from error


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if preprocessing.resize is None:
        return image
    if isinstance(preprocessing.resize, int):
        shortest = min(image.size)
        width, height = (side * preprocessing.resize // shortest for side in image.size)
    else:
        height, width = preprocessing.resize
    if height * width > MAX_PIXELS:  # a strip of a few pixels, enlarged until its short side is long enough
        raise DataError("image", f"{image.height} x {image.width} pixels would be resized to {height} x {width}")
    return image.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])


def _centre_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    height, width = crop
    # int() and not //: an odd difference leaves the smaller part above and to the left, of a crop and of padding.
    top, left = int((image.height - height) / 2), int((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _by(size: tuple[int, int], sign: str = "x") -> str:
    return f"{size[0]}{sign}{size[1]}"
