"""The values that a preprocessing field may take, written in Python, in JSON or as the text of an option."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from onnxvitq.core.errors import ConfigError

Mode = Literal["L", "RGB"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Layout = Literal["NCHW", "NHWC"]

CHANNELS: Mapping[Mode, int] = {"L": 1, "RGB": 3}
# Pixels of a side. More is a mistake or an attack: three such channels are 768 MB before the conversion to float.
MAX_SIDE = 16384
# Bounds of scales, means and standard deviations; beyond them float32 values overflow or vanish.
SMALLEST, LARGEST = 1e-12, 1e12


def parse_mode(value: object, where: str) -> Mode:
    """``"L"`` or ``"RGB"``, upper or lower case."""
    match value.upper() if isinstance(value, str) else value:
        case "L":
            return "L"
        case "RGB":
            return "RGB"
    raise ConfigError(where, f"expected L or RGB, got {value!r}")


def parse_interpolation(value: object, where: str) -> Interpolation:
    """One of the four filters' names, upper or lower case."""
    match value.lower() if isinstance(value, str) else value:
        case "nearest" | "bilinear" | "bicubic" | "lanczos" as name:
            return name
    raise ConfigError(where, f"expected nearest, bilinear, bicubic or lanczos, got {value!r}")


def parse_layout(value: object, where: str) -> Layout:
    """``"NCHW"`` or ``"NHWC"``."""
    match value:
        case "NCHW" | "NHWC":
            return value
    raise ConfigError(where, f"expected NCHW or NHWC, got {value!r}")


def parse_resize(value: object, where: str) -> int | tuple[int, int] | None:
    """None or ``"none"``; the shortest side ``256`` or ``"256"``; height and width ``(224, 224)`` or ``"224x224"``."""
    if value is None or value == "none":
        return None
    sides = _sides(value, where)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_crop(value: object, where: str) -> tuple[int, int] | None:
    """As `parse_resize`, but one number is the side of a square."""
    if value is None or value == "none":
        return None
    sides = _sides(value, where)
    return sides[0], sides[-1]


def parse_scale(value: object, where: str) -> float:
    """A positive number, or text such as ``"1/255"``."""
    if isinstance(value, str) and value.count("/") == 1:
        over, under = (_number(part, where) for part in value.split("/"))
        value = over / under if under else math.inf
    scale = _number(value, where)
    if scale < SMALLEST:
        raise ConfigError(where, f"expected a positive number, got {value!r}")
    return scale


def parse_mean(value: object, where: str) -> tuple[float, ...]:
    """One number, one number a channel, or text such as ``"0.5,0.5,0.5"``."""
    if isinstance(value, str):
        value = value.split(",")
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) not in {1, 3}:
        raise ConfigError(where, f"expected one number, or one a channel (3), got {len(values)}")
    return tuple(_number(item, where) for item in values)


def parse_std(value: object, where: str) -> tuple[float, ...]:
    """As `parse_mean`, every number positive."""
    values = parse_mean(value, where)
    if min(values) < SMALLEST:
        raise ConfigError(where, f"expected positive numbers, got {value!r}")
    return values


# The fields of `preprocess.Preprocessing`, in the order in which they act; the layout comes last.
PARSERS: Mapping[str, Callable[[object, str], object]] = {
    "mode": parse_mode,
    "resize": parse_resize,
    "crop": parse_crop,
    "interpolation": parse_interpolation,
    "scale": parse_scale,
    "mean": parse_mean,
    "std": parse_std,
    "layout": parse_layout,
}


def _sides(value: object, where: str) -> list[int]:
    if isinstance(value, str):
        value = value.lower().split("x")
    values: list[Any] = list(value) if isinstance(value, Sequence) else [value]
    sides = [int(item) for item in values if _is_integer(item)]
    if len(sides) != len(values) or len(sides) not in {1, 2}:
        raise ConfigError(where, f"expected a side such as 224, or height x width such as 224x224, got {value!r}")
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise ConfigError(where, f"expected sides of 1 to {MAX_SIDE} pixels, got {value!r}")
    return sides


def _is_integer(item: Any) -> bool:
    if isinstance(item, str):
        return item.isascii() and item.isdigit() and len(item) < 10
    return isinstance(item, Integral) and not isinstance(item, bool)


def _number(value: object, where: str) -> float:
    number = math.nan
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError as error:
            raise ConfigError(where, f"expected a number, got {value!r}") from error
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if not abs(number) <= LARGEST:
        raise ConfigError(where, f"expected a finite number, got {value!r}")
    return number
