"""Preprocessing as other tools write it: Hugging Face's preprocessor_config.json and timm's config.json.

Both are read into the field names of `preprocess.Preprocessing`; a field that the file does not state is left out,
so that the next source can state it. A step that onnxvitq does not do is refused, never left out silently: the
statistics would be those of other images than the model will see.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from onnxvitq.core.errors import ConfigError
from onnxvitq.data.fields import PARSERS, parse_crop, parse_mean, parse_scale

Fields = dict[str, object]

HUGGING_FACE_KEYS = frozenset(
    {"image_processor_type", "feature_extractor_type", "do_resize", "do_rescale", "do_normalize", "image_mean", "size"}
)
# Steps of some Hugging Face processors that change the pixels beyond resize, crop, rescale and normalise.
OTHER_STEPS = (
    "crop_pct",
    "do_align_long_axis",
    "do_flip_channel_order",
    "do_image_splitting",
    "do_pad",
    "do_thumbnail",
    "include_top",
    "offset",
    "rescale_offset",
)
# Processors for which a ``size`` written as one number is the shortest side; for all others it is a square.
SHORTEST_EDGE = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "MobileNet", "MobileViT", "PoolFormer")
# PIL's numbers for its filters.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
TIMM_CROP_PCT = 0.875  # timm's own default


def find_config_file(model: Path) -> Path | None:
    """The preprocessing file that lies beside a model, if any.

    Looked for: preprocessor_config.json, or a config.json that holds timm's ``pretrained_cfg``, in the model's folder
    and, when that folder is named ``onnx`` (the layout of models exported for a hub), in the one above.
    """
    folders = [model.parent, model.parent.parent] if model.parent.name == "onnx" else [model.parent]
    for folder in folders:
        if (folder / "preprocessor_config.json").is_file():
            return folder / "preprocessor_config.json"
        if _is_timm(folder / "config.json"):
            return folder / "config.json"
    return None


def read_config_file(path: Path) -> Fields:
    """The preprocessing fields that a file states.

    Args:
        path: Hugging Face's preprocessor_config.json, timm's config.json, or `Preprocessing.to_dict` as JSON.

    Raises:
        ConfigError: the file is missing, is not JSON of a known kind, or asks for a step that is not done here.
    """
    return document_fields(read_json(path), str(path))


def document_fields(document: Mapping[str, object], where: str) -> Fields:
    """The fields that the parsed text of such a file states.

    Raises:
        ConfigError: not of a known kind, or it asks for a step that is not done here.
    """
    if "pretrained_cfg" in document or "input_size" in document:
        # timm's older files hold the same keys at the top level.
        return _timm(document.get("pretrained_cfg", document), where)
    if document.keys() & HUGGING_FACE_KEYS:
        return _hugging_face({key: value for key, value in document.items() if value is not None}, where)
    if document.keys() & PARSERS.keys():
        return own_fields(document, where)
    raise ConfigError(
        where, "expected preprocessing (Hugging Face, timm or onnxvitq), got a file with none of their keys"
    )


def own_fields(document: object, where: str) -> Fields:
    """A checked copy of a dictionary in onnxvitq's own field names; it need not state all fields.

    Raises:
        ConfigError: it is not a dictionary, or a key is no field.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(where, f"expected a dictionary, got {type(document).__name__}")
    unknown = sorted(str(key) for key in document.keys() - PARSERS.keys())
    if unknown:
        raise ConfigError(where, f"unknown key {unknown[0]!r}, expected {', '.join(PARSERS)}")
    return dict(document)


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"expected JSON, got an error: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(str(path), f"expected a JSON object, got {type(document).__name__}")
    return document


def _is_timm(path: Path) -> bool:
    # Many tools write a config.json: one that is not timm's, or not even JSON, is no preprocessing file.
    try:
        return "pretrained_cfg" in read_json(path)
    except ConfigError:
        return False


def _hugging_face(document: Mapping[str, object], where: str) -> Fields:
    processor = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    refused = [step for step in OTHER_STEPS if document.get(step)]
    # LeViT's processor enlarges its size by 256/224 in code; the file does not say so.
    if refused or processor.startswith("Levit"):
        step = f"{refused[0]} = {document[refused[0]]}" if refused else f"the resizing of {processor}"
        raise ConfigError(
            where, f"{step} is not supported", "give preprocessed arrays as .npz, or a file without this step"
        )
    fields: Fields = {}
    if document.get("do_convert_rgb"):
        fields["mode"] = "RGB"
    if not document.get("do_resize", "size" in document):
        fields["resize"] = None
    elif "size" in document:
        fields["resize"] = _size(document["size"], processor, f"{where}: size")
    if "resample" in document:
        number = document["resample"]
        if not isinstance(number, int) or number not in RESAMPLE:
            raise ConfigError(f"{where}: resample", f"expected 0, 1, 2 or 3, got {number!r}")
        fields["interpolation"] = RESAMPLE[number]
    fields |= _hugging_face_crop(document, fields, where)
    fields["scale"] = document.get("rescale_factor", 1 / 255) if document.get("do_rescale", True) else 1.0
    if not document.get("do_normalize", True):
        fields |= {"mean": 0.0, "std": 1.0}
    else:
        names = {"mean": "image_mean", "std": "image_std"}
        fields |= {field: document[key] for field, key in names.items() if key in document}
    return fields


def _hugging_face_crop(document: Mapping[str, object], fields: Fields, where: str) -> Fields:
    if document.get("do_center_crop"):
        crop = document.get("crop_size", document.get("size"))
        if isinstance(crop, Mapping):
            crop = [crop.get("height"), crop.get("width")] if "height" in crop else crop.get("shortest_edge")
        if crop is None:
            raise ConfigError(where, "do_center_crop is true, expected a crop_size, got none")
        return {"crop": crop}
    # A shortest side with no word on a crop gives images of any shape: the next source is asked for the crop.
    if "do_center_crop" in document or not isinstance(fields.get("resize"), int):
        return {"crop": None}
    return {}


def _size(size: object, processor: str, where: str) -> object:
    if not isinstance(size, Mapping):
        shortest = isinstance(size, int) and processor.startswith(SHORTEST_EDGE)
        return size if shortest or not isinstance(size, int) else (size, size)
    stated = {key: value for key, value in size.items() if value is not None}
    if stated.keys() == {"height", "width"}:
        return stated["height"], stated["width"]
    if stated.keys() == {"shortest_edge"}:
        return stated["shortest_edge"]
    raise ConfigError(where, f"expected height and width, or shortest_edge, got {', '.join(map(str, stated)) or '{}'}")


def _timm(config: object, where: str) -> Fields:
    if not isinstance(config, Mapping) or "input_size" not in config:
        raise ConfigError(where, "pretrained_cfg: expected an object with input_size")
    channels, *sides = _input_size(config["input_size"], f"{where}: input_size")
    crop = parse_crop(sides, f"{where}: input_size")
    percent = parse_scale(config.get("crop_pct") or TIMM_CROP_PCT, f"{where}: crop_pct")
    crop_mode = config.get("crop_mode") or "center"
    if crop is None or crop_mode not in {"center", "squash"} or (crop_mode == "center" and crop[0] != crop[1]):
        problem = f"crop_mode {crop_mode!r} of {sides} is not supported"
        raise ConfigError(where, problem, "give preprocessed arrays as .npz")
    enlarged = [math.floor(side / percent) for side in crop]
    fields: Fields = {
        "resize": enlarged[0] if crop_mode == "center" else enlarged,
        "crop": crop,
        "scale": 1 / 255,
        "mode": "RGB" if channels == 3 else "L",
    }
    if config.get("interpolation"):
        fields["interpolation"] = config["interpolation"]
    for name in ("mean", "std"):
        if config.get(name) is not None:
            fields[name] = parse_mean(config[name], f"{where}: {name}")
    return fields


def _input_size(value: object, where: str) -> list[int]:
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(side, int) for side in value)
        and value[0] in {1, 3}
    ):
        return value
    raise ConfigError(where, f"expected [channels, height, width] with 1 or 3 channels, got {value!r}")
