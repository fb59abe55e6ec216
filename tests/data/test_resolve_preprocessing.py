import json
from pathlib import Path
from typing import Any

import pytest

from onnxvitq.core.errors import ConfigError, DataError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.preprocess import PREPROCESSING_KEY, Preprocessing, resolve_preprocessing

HUGGING_FACE = {
    "image_processor_type": "DeiTImageProcessor",
    "do_resize": True,
    "size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
}


def resolve(
    shape: tuple[int | None, ...],
    *,
    config: Any = None,
    folder: Path | None = None,
    metadata: dict[str, Any] | None = None,
    **flags: object,
) -> tuple[Preprocessing, str]:
    path = None
    if config is not None:
        assert folder is not None
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(config))
    stored = {} if metadata is None else {PREPROCESSING_KEY: json.dumps(metadata)}
    spec = InputSpec(name="pixel_values", dtype="float32", shape=shape)
    return resolve_preprocessing(spec, flags=flags, config_file=path, metadata=stored)


def test_defaults_for_one_channel() -> None:
    got, text = resolve((None, 1, 28, 28))
    assert got == Preprocessing(mode="L", resize=(28, 28), mean=(0.5,), std=(0.5,))
    assert text == ("mode, resize, layout from the model's input; interpolation, scale, mean, std from defaults")


def test_defaults_for_three_channels_are_imagenets() -> None:
    got, _ = resolve((1, 3, 224, 192))
    assert got == Preprocessing(
        mode="RGB", resize=(224, 192), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255
    )


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((1, 3, 8, 6), "NCHW", (8, 6)),
        ((1, 8, 6, 3), "NHWC", (8, 6)),
        ((1, 8, 6, 1), "NHWC", (8, 6)),
        ((1, 3, 8, 3), "NCHW", (8, 3)),
        ((1, None, 8, 6), "NCHW", (8, 6)),
    ],
)
def test_layout_follows_the_shape(shape: tuple[int | None, ...], layout: str, size: tuple[int, int]) -> None:
    got, _ = resolve(shape)
    assert (got.layout, got.resize) == (layout, size)


def test_config_file_wins_over_metadata_wins_over_defaults(tmp_path: Path) -> None:
    config = {key: value for key, value in HUGGING_FACE.items() if key not in {"image_std", "resample"}}
    metadata = {"std": [0.7, 0.8, 0.9], "mean": [0.0, 0.0, 0.0]}
    got, text = resolve((None, 3, 224, 224), config=config, folder=tmp_path, metadata=metadata)
    assert (got.resize, got.crop) == ((256, 256), (224, 224))
    assert (got.mean, got.std, got.interpolation) == ((0.5, 0.4, 0.3), (0.7, 0.8, 0.9), "bicubic")
    assert text == (
        "mode, layout from the model's input; resize, crop, scale, mean from preprocessor_config.json; "
        "interpolation from defaults; std from the model's metadata"
    )


def test_flags_win_field_by_field(tmp_path: Path) -> None:
    got, text = resolve(
        (None, 3, 224, 224),
        config=HUGGING_FACE,
        folder=tmp_path,
        mean="0.1",
        resize="230",
        std=None,
        interpolation="lanczos",
    )
    assert got.mean == (0.1, 0.1, 0.1)
    assert (got.resize, got.crop, got.interpolation, got.std) == (230, (224, 224), "lanczos", (0.1, 0.2, 0.3))
    assert "resize, interpolation, mean from flags" in text


def test_a_flag_makes_up_for_a_wrong_value_that_it_replaces(tmp_path: Path) -> None:
    config = {"mode": "RGB", "interpolation": "random"}
    got, _ = resolve((1, 3, 8, 8), config=config, folder=tmp_path, interpolation="bilinear")
    assert got.interpolation == "bilinear"
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: interpolation: .*'random'"):
        resolve((1, 3, 8, 8), config=config, folder=tmp_path)


def test_what_was_stored_in_a_model_is_read_back() -> None:
    stored = Preprocessing(mode="RGB", resize=40, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5,), layout="NHWC")
    got, text = resolve((None, 32, 32, 3), metadata=stored.to_dict())
    assert got == stored
    assert text == (
        "mode, resize, crop, interpolation, scale, mean, std from the model's metadata; layout from the model's input"
    )
    assert resolve((None, None, None, None), metadata=stored.to_dict())[0] == stored


def test_timm_file(tmp_path: Path) -> None:
    config = {"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic"}}
    got, _ = resolve((None, 3, 224, 224), config=config, folder=tmp_path)
    assert (got.resize, got.crop, got.mode) == (256, (224, 224), "RGB")


@pytest.mark.parametrize(
    ("shape", "flags", "crop"),
    [
        ((None, 3, 224, 192), {"resize": 256}, (224, 192)),
        ((None, 3, None, None), {"resize": 256}, (256, 256)),
        ((None, 3, None, None), {"resize": 256, "crop": 224}, (224, 224)),
        ((None, 3, None, None), {"resize": "256", "crop": "none"}, None),
        ((None, 3, None, None), {"resize": "256x224"}, None),
        ((None, 3, 224, 224), {"resize": "none"}, None),
    ],
)
def test_a_shortest_side_without_a_crop_is_cropped_to_what_the_model_takes(
    shape: tuple[int | None, ...], flags: dict[str, Any], crop: tuple[int, int] | None
) -> None:
    assert resolve(shape, **flags)[0].crop == crop


@pytest.mark.parametrize(
    ("flags", "mode"), [({}, "RGB"), ({"color": "l"}, "L"), ({"mean": "0.1,0.2,0.3"}, "RGB"), ({"mean": 0.5}, "RGB")]
)
def test_dynamic_channels(flags: dict[str, Any], mode: str) -> None:
    assert resolve((None, None, None, None), resize="8x8", **flags)[0].mode == mode


@pytest.mark.parametrize("shape", [(None, 3, None, None), (None, 3, 224, None), (None, None, None, None)])
def test_a_dynamic_size_without_any_word_on_it_asks_for_resize(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(DataError, match="--resize") as caught:
        resolve(shape)
    assert caught.value.where == "pixel_values"


def test_a_size_that_the_model_does_not_take_names_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"384 x 384.* preprocessor_config\.json gives 224 x 224"):
        resolve((1, 3, 384, 384), config=HUGGING_FACE, folder=tmp_path)
    with pytest.raises(DataError, match=r"takes any x 384 .* flags gives 224 x 224"):
        resolve((1, 3, None, 384), resize="224x224")


@pytest.mark.parametrize(
    ("shape", "flags", "problem"),
    [
        ((1, 3, 8), {}, "rank 4"),
        ((1, 4, 8, 8), {}, "1 or 3 channels"),
        ((1, 1, 8, 8), {"color": "RGB"}, r"takes 1 channel\(s\), flags says mode RGB"),
        ((1, 3, 8, 8), {"color": "L"}, r"takes 3 channel\(s\), flags says mode L"),
        ((1, 1, 8, 8), {"mean": "1,2,3"}, "takes 1 channel, flags gives 3 numbers for mean"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    shape: tuple[int | None, ...], flags: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        resolve(shape, **flags)


@pytest.mark.parametrize(
    ("flags", "where"),
    [({"mean": "a"}, "--mean"), ({"color": "BGR"}, "--color"), ({"layout": "NCHW"}, "--layout"), ({"x": 1}, "--x")],
)
def test_a_wrong_flag_is_named(flags: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve((1, 3, 8, 8), **flags)
    assert caught.value.where == where


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"mean": "x"}', '{"unknown": 1}'])
def test_damaged_metadata_is_named(text: str) -> None:
    spec = InputSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=PREPROCESSING_KEY):
        resolve_preprocessing(spec, flags={}, config_file=None, metadata={PREPROCESSING_KEY: text})
