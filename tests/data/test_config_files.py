import json
from pathlib import Path
from typing import Any

import pytest

from onnxvitq.core.errors import ConfigError
from onnxvitq.data.config_files import find_config_file, read_config_file

VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.25, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 192},
}
CLIP = VIT | {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 224},
}
TIMM: dict[str, Any] = {
    "architecture": "vit_small_patch16_224",
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}


def read(folder: Path, document: Any) -> dict[str, object]:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_config_file(path)


def timm(**changes: Any) -> dict[str, Any]:
    return TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | changes}


def test_hugging_face_vit(tmp_path: Path) -> None:
    assert read(tmp_path, VIT) == {
        "resize": (224, 192),
        "interpolation": "bilinear",
        "crop": None,
        "scale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 0.5],
    }


def test_hugging_face_clip_resizes_the_shortest_edge_and_crops(tmp_path: Path) -> None:
    fields = read(tmp_path, CLIP)
    assert (fields["resize"], fields["crop"]) == (224, [224, 224])
    assert (fields["mode"], fields["interpolation"]) == ("RGB", "bicubic")


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"size": 224}, "resize", (224, 224)),
        ({"size": 224, "image_processor_type": "CLIPImageProcessor"}, "resize", 224),
        (
            {"size": 224, "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
            "resize",
            224,
        ),
        ({"size": {"shortest_edge": 256, "longest_edge": None}}, "resize", 256),
        ({"do_resize": False}, "resize", None),
        ({"do_resize": False}, "crop", None),
        ({"do_resize": None}, "resize", (224, 192)),
        ({"do_center_crop": True, "crop_size": 200}, "crop", 200),
        ({"do_center_crop": True}, "crop", [224, 192]),
        ({"do_center_crop": False, "crop_size": {"height": 9, "width": 9}}, "crop", None),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False}, "crop", None),
        ({"do_rescale": False}, "scale", 1.0),
        ({"do_rescale": None, "rescale_factor": None}, "scale", 1 / 255),
        ({"rescale_factor": 0.5}, "scale", 0.5),
        ({"do_normalize": False}, "mean", 0.0),
        ({"do_normalize": False}, "std", 1.0),
        ({"do_convert_rgb": True}, "mode", "RGB"),
    ],
)
def test_hugging_face_keys(tmp_path: Path, changes: dict[str, Any], field: str, expected: object) -> None:
    assert read(tmp_path, VIT | changes)[field] == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resample": None}, "interpolation"),
        ({"image_mean": None}, "mean"),
        ({"do_convert_rgb": False}, "mode"),
        ({"size": {"shortest_edge": 256}}, "crop"),
        ({"size": None, "do_resize": True}, "resize"),
    ],
)
def test_what_a_hugging_face_file_does_not_say_is_left_to_others(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    assert field not in read(tmp_path, VIT | changes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"resample": 4}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor"),
        ({"size": {"longest_edge": 1024}}, "longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 1024}}, "longest_edge"),
        ({"size": {}}, "shortest_edge"),
        ({"do_center_crop": True, "size": None}, "crop_size"),
        ({"do_center_crop": True, "crop_size": {"longest_edge": 3}}, "crop_size"),
    ],
)
def test_a_hugging_face_step_that_is_not_done_here_is_refused(
    tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    with pytest.raises(ConfigError, match=names) as caught:
        read(tmp_path, VIT | changes)
    assert "preprocessor_config.json" in caught.value.where


def test_timm_resizes_to_the_size_over_the_crop_fraction(tmp_path: Path) -> None:
    assert read(tmp_path, TIMM) == {
        "resize": 248,  # floor(224 / 0.9)
        "crop": (224, 224),
        "scale": 1 / 255,
        "mode": "RGB",
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"crop_pct": 1.0}, "resize", 224),
        ({"crop_pct": None}, "resize", 256),
        ({"crop_mode": "squash", "input_size": [3, 224, 192]}, "resize", [248, 213]),
        ({"crop_mode": "squash", "input_size": [3, 224, 192]}, "crop", (224, 192)),
        ({"input_size": [1, 28, 28]}, "mode", "L"),
    ],
)
def test_timm_keys(tmp_path: Path, changes: dict[str, Any], field: str, expected: object) -> None:
    assert read(tmp_path, timm(**changes))[field] == expected


def test_timm_keys_at_the_top_level_as_older_files_have_them(tmp_path: Path) -> None:
    assert read(tmp_path, {"architecture": "vit", **TIMM["pretrained_cfg"]}) == read(tmp_path, TIMM)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_mode": "border"},
        {"input_size": [3, 224, 192]},
        {"input_size": [4, 224, 224]},
        {"input_size": [3, 224]},
        {"input_size": [3, 0, 0]},
        {"crop_pct": -1},
        {"mean": [1, 2]},
    ],
)
def test_a_timm_file_that_cannot_be_followed_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        read(tmp_path, timm(**changes))


def test_own_dictionary_may_be_partial(tmp_path: Path) -> None:
    assert read(tmp_path, {"resize": None, "mean": [0.1]}) == {"resize": None, "mean": [0.1]}


def test_own_dictionary_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'means'"):
        read(tmp_path, {"mode": "L", "means": 0.5})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": 1}', "\ufeff{}", "[" * 100_000, "1" * 5000])
def test_a_file_that_is_no_preprocessing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected"):
        read_config_file(path)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected JSON"):
        read_config_file(tmp_path / "binary.json")


def test_the_file_beside_the_model_is_found(tmp_path: Path) -> None:
    model = tmp_path / "onnx" / "model.onnx"
    model.parent.mkdir()
    assert find_config_file(model) is None
    (model.parent / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "config.json").write_text("{not JSON")
    assert find_config_file(model) is None
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    assert find_config_file(model) == tmp_path / "config.json"
    (model.parent / "preprocessor_config.json").write_text(json.dumps(VIT))
    assert find_config_file(model) == model.parent / "preprocessor_config.json"


def test_the_folder_above_is_searched_only_from_a_folder_named_onnx(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    assert find_config_file(tmp_path / "other" / "model.onnx") is None
    assert find_config_file(tmp_path / "model.onnx") == tmp_path / "preprocessor_config.json"
