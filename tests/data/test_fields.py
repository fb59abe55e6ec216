from collections.abc import Callable

import numpy as np
import pytest

from onnxvitq.core.errors import ConfigError
from onnxvitq.data.fields import (
    PARSERS,
    parse_crop,
    parse_interpolation,
    parse_layout,
    parse_mean,
    parse_mode,
    parse_resize,
    parse_scale,
    parse_std,
)


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (parse_mode, "rgb", "RGB"),
        (parse_mode, "L", "L"),
        (parse_interpolation, "Bicubic", "bicubic"),
        (parse_layout, "NHWC", "NHWC"),
        (parse_resize, None, None),
        (parse_resize, "none", None),
        (parse_resize, 256, 256),
        (parse_resize, "256", 256),
        (parse_resize, "224x192", (224, 192)),
        (parse_resize, [224, 192], (224, 192)),
        (parse_resize, np.int64(32), 32),
        (parse_crop, 224, (224, 224)),
        (parse_crop, "224X192", (224, 192)),
        (parse_crop, "none", None),
        (parse_scale, "1/255", 1 / 255),
        (parse_scale, 1, 1.0),
        (parse_scale, "0.5", 0.5),
        (parse_mean, 0, (0.0,)),
        (parse_mean, "0.5,0.4,0.3", (0.5, 0.4, 0.3)),
        (parse_mean, [0.5, 0.4, 0.3], (0.5, 0.4, 0.3)),
        (parse_std, "0.5", (0.5,)),
    ],
)
def test_every_way_to_write_a_value_is_understood(
    parse: Callable[[object, str], object], value: object, expected: object
) -> None:
    assert parse(value, "here") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "BGR"),
        ("mode", 3),
        ("interpolation", "random"),
        ("interpolation", 2),
        ("layout", "CHW"),
        ("resize", 0),
        ("resize", -4),
        ("resize", 10**9),
        ("resize", True),
        ("resize", 224.0),
        ("resize", "224x"),
        ("resize", "1x2x3"),
        ("resize", "٣"),
        ("resize", [None, None]),
        ("resize", {"height": 2}),
        ("crop", ""),
        ("crop", "9" * 5000),
        ("scale", 0),
        ("scale", "1/0"),
        ("scale", "1/2/3"),
        ("scale", float("nan")),
        ("scale", 1e300),
        ("scale", False),
        ("mean", []),
        ("mean", [0.5, 0.5]),
        ("mean", "0.5;0.5"),
        ("mean", float("inf")),
        ("mean", None),
        ("std", 0),
        ("std", [1.0, -1.0, 1.0]),
        ("std", 1e-40),
    ],
)
def test_a_wrong_value_is_named_with_its_place(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        PARSERS[name](value, f"--{name}")
    assert caught.value.where == f"--{name}"
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
