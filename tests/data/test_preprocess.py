import io
import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.data.preprocess import Preprocessing, preprocess_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def untouched(mode: str, **changes: Any) -> Preprocessing:
    """The pixels as they are, as floats."""
    fields: dict[str, Any] = {"mode": mode, "scale": 1.0, "mean": 0.0, "std": 1.0} | changes
    return Preprocessing(**fields)


def test_record_is_frozen_and_equal_to_its_dictionary_through_json() -> None:
    record = Preprocessing(mode="RGB", resize=(9, 7), crop=(5, 5), mean=(0.1, 0.2, 0.3), std=(1 / 3,), layout="NHWC")
    assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert hash(record)
    with pytest.raises(FrozenInstanceError):
        record.mode = "L"  # type: ignore[misc]


def test_one_mean_is_repeated_for_each_channel() -> None:
    assert untouched("RGB", mean=0.5).mean == (0.5, 0.5, 0.5)
    assert untouched("L", mean=0.5).mean == (0.5,)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"mode": "L", "mean": 0.5, "std": 0.5, "size": 3}, "unknown key 'size'"),
        ({"mode": "L", "mean": 0.5}, "'std'"),
        ({"mode": "L", "mean": [0.5, 0.5, 0.5], "std": 0.5}, "mean: expected one number for mode L, got 3"),
        ({"mode": "RGB", "mean": 0.5, "std": 0}, "std: expected positive"),
        ({"mode": "RGB", "mean": 0.5, "std": 1, "crop": -3}, "crop: expected sides"),
    ],
)
def test_a_wrong_dictionary_is_refused(document: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Preprocessing.from_dict(document)


def test_description_is_one_line_with_every_step() -> None:
    text = Preprocessing(mode="RGB", resize=256, crop=(224, 192), mean=(0.485, 0.456, 0.406), std=(0.5,)).describe()
    assert text == (
        "RGB; resize shortest side to 256 (bicubic); centre crop 224x192; x 1/255; mean 0.485, 0.456, 0.406; "
        "std 0.5, 0.5, 0.5; NCHW"
    )
    assert untouched("L", resize=(4, 6)).describe() == "L; resize to 4x6 (bicubic); x 1; mean 0; std 1; NCHW"


def test_values_are_scaled_then_normalised_for_each_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = preprocess_image(Image.fromarray(PIXELS), Preprocessing(mode="RGB", mean=mean, std=std))
    expected = (PIXELS.astype(np.float64) / 255 - mean) / std
    # float32 arithmetic on values up to 4: three roundings of 2**-22 at most
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    assert got.dtype == np.float32
    assert got.flags["C_CONTIGUOUS"]


def test_layout_puts_the_channels_last() -> None:
    first = preprocess_image(Image.fromarray(PIXELS), untouched("RGB"))
    last = preprocess_image(Image.fromarray(PIXELS), untouched("RGB", layout="NHWC"))
    assert first.shape == (3, 6, 8)
    np.testing.assert_array_equal(last, PIXELS)
    np.testing.assert_array_equal(first, last.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_orientation_tag_is_applied(suffix: str) -> None:
    left_bright = np.zeros((4, 8), np.uint8)
    left_bright[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise to be upright
    file = io.BytesIO()
    Image.fromarray(left_bright).save(file, suffix, exif=exif)
    with Image.open(file) as image:
        got = preprocess_image(image, untouched("L"))
    assert got.shape == (1, 8, 4)
    assert got[0, :2].min() > 200
    assert got[0, -2:].max() < 55


def test_damaged_tags_leave_the_image_as_it_is() -> None:
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0nonsense"
    np.testing.assert_array_equal(preprocess_image(image, untouched("RGB", layout="NHWC")), PIXELS)


@pytest.mark.parametrize("target", ["L", "RGB"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_converted_as_pil_does(mode: str, target: str) -> None:
    image = Image.fromarray(PIXELS).convert("LA" if mode == "PA" else "RGB").convert(mode)
    got = preprocess_image(image, untouched(target, layout="NHWC"))
    expected = (image.convert("RGBA") if mode in {"P", "PA"} else image).convert(target)
    np.testing.assert_array_equal(got.squeeze(), np.asarray(expected))


def test_alpha_is_dropped_not_composited() -> None:
    image = Image.fromarray(np.dstack([PIXELS, np.zeros((6, 8), np.uint8)]))
    np.testing.assert_array_equal(preprocess_image(image, untouched("RGB", layout="NHWC")), PIXELS)


def test_a_palette_with_transparency_gives_its_colours_without_a_warning() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).convert("P")
    image.putpalette([channel for entry in range(256) for channel in (entry, 255 - entry, 7)])
    indices = np.asarray(image)
    image.info["transparency"] = bytes(range(256))
    got = preprocess_image(image, untouched("RGB", layout="NHWC"))
    expected = np.stack([indices, 255 - indices, np.full_like(indices, 7)], axis=-1)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_to_8_bit(dtype: str) -> None:
    levels = np.array([[0, 128, 257, 32896, 65407, 65535]], dtype)
    got = preprocess_image(Image.fromarray(levels), untouched("L"))
    np.testing.assert_array_equal(got[0], [[0, 0, 1, 128, 255, 255]])


def test_16_bit_png_and_pgm_files_give_the_same_pixels() -> None:
    levels = RNG.integers(0, 65536, (5, 5)).astype(np.uint16)
    png = io.BytesIO()
    Image.fromarray(levels).save(png, "PNG")
    pgm = io.BytesIO(b"P5 5 5 65535\n" + levels.astype(">u2").tobytes())
    with Image.open(png) as one, Image.open(pgm) as other:
        got = [preprocess_image(image, untouched("RGB")) for image in (one, other)]
    np.testing.assert_array_equal(got[0], got[1])
    assert len(np.unique(got[0])) > 5


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (Image.new("F", (3, 3)), "floating-point"),
        (Image.new("I", (3, 3), 70000), "16-bit"),
        (Image.new("I", (3, 3), -1), "16-bit"),
        (Image.new("LAB", (3, 3)), "LAB cannot be converted"),
        (Image.new("RGB", (0, 3)), "size of 3 x 0"),
    ],
)
def test_pixels_without_a_meaning_are_refused(image: Image.Image, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        preprocess_image(image, untouched("L"))


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((300, 403), 224, (224, 300)),  # 403 * 224 / 300 = 300.9, truncated
        ((403, 300), 224, (300, 224)),
        ((10, 10), 224, (224, 224)),
        ((30, 40), (16, 8), (16, 8)),
        ((30, 40), None, (30, 40)),
    ],
)
def test_resize(size: tuple[int, int], resize: Any, expected: tuple[int, int]) -> None:
    got = preprocess_image(Image.fromarray(np.zeros(size, np.uint8)), untouched("L", resize=resize))
    assert got.shape == (1, *expected)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_pils_of_that_name(name: str) -> None:
    image = Image.fromarray(PIXELS)
    got = preprocess_image(image, untouched("RGB", resize=(3, 5), interpolation=name, layout="NHWC"))
    np.testing.assert_array_equal(got, np.asarray(image.resize((5, 3), Image.Resampling[name.upper()])))


def test_a_strip_that_would_become_gigabytes_is_refused() -> None:
    with pytest.raises(DataError, match="would be resized to 4000 x 40000000"):
        preprocess_image(Image.new("L", (10000, 1)), untouched("L", resize=4000))


@pytest.mark.parametrize(("crop", "top", "left"), [((4, 4), 1, 2), ((3, 3), 1, 2), ((6, 8), 0, 0), ((1, 1), 2, 3)])
def test_crop_takes_the_centre(crop: tuple[int, int], top: int, left: int) -> None:
    got = preprocess_image(Image.fromarray(PIXELS), untouched("RGB", crop=crop, layout="NHWC"))
    np.testing.assert_array_equal(got, PIXELS[top : top + crop[0], left : left + crop[1]])


def test_crop_larger_than_the_image_pads_with_black() -> None:
    got = preprocess_image(Image.fromarray(PIXELS), untouched("RGB", crop=(9, 4), layout="NHWC"))
    expected = np.zeros((9, 4, 3))
    expected[1:7] = PIXELS[:, 2:6]
    np.testing.assert_array_equal(got, expected)


def test_the_image_is_not_modified() -> None:
    image = Image.fromarray(PIXELS)
    preprocess_image(image, untouched("L", resize=(3, 3), crop=(2, 2)))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
