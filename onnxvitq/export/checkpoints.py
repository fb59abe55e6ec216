"""SPEC forms that name an architecture: a Hugging Face folder or config.json, and ``timm:NAME``. Never downloads."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from onnxvitq.core.errors import ExportError
from onnxvitq.export.foreign import foreign_code, quiet
from onnxvitq.export.source import ExportSource, preprocessor_text, random_images

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".h5", ".msgpack", ".pt", ".pth", ".ckpt"}


class ImageModel(nn.Module):
    """A transformers model as image in, one tensor out: its logits, or its last hidden state where it has no head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> logits (B, classes), or features (B, T, C)."""
        outputs = self.model(pixel_values=pixel_values)
        logits = getattr(outputs, "logits", None)
        result: torch.Tensor = outputs.last_hidden_state if logits is None else logits
        return result


def huggingface_source(path: Path, image_size: int | None, seed: int) -> ExportSource:
    """Build the model of a checkpoint folder, or of a ``config.json`` alone (then with random weights).

    An image size other than the configuration's replaces it; a checkpoint whose position embedding does not fit that
    size is refused by transformers.

    Raises:
        ExportError: transformers is missing, or cannot read the configuration or the weights.
    """
    where = str(path)
    transformers = _imported("transformers", where, "install the extra: onnxvitq[torch]")
    with foreign_code(where, "transformers cannot read the configuration"), quiet():
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    size, channels = _image_shape(config, image_size, where)
    if image_size is not None and hasattr(config, "image_size"):
        config.image_size = image_size
    model, weights = _model(transformers, path, config, seed)
    return ExportSource(
        module=ImageModel(model),
        inputs=random_images(channels, *size),
        input_name="pixel_values",
        weights=weights,
        preprocessor=preprocessor_text(path if path.is_dir() else path.parent),
    )


def _image_shape(config: Any, image_size: int | None, where: str) -> tuple[tuple[int, int], int]:
    """((height, width), channels) of the images that a configuration asks for."""
    channels = getattr(config, "num_channels", None) or 3
    size = image_size if image_size is not None else getattr(config, "image_size", None)
    if isinstance(size, int):
        return (size, size), channels
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return (size[0], size[1]), channels
    raise ExportError(where, f"expected image_size in the configuration, got {size!r}", "give --image-size")


def _model(transformers: ModuleType, path: Path, config: Any, seed: int) -> tuple[nn.Module, str]:
    """The model in float32 and the word on where its weights come from."""
    classifies = any("ForImageClassification" in name for name in config.architectures or ())
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    with foreign_code(str(path), "transformers cannot build the model"), quiet():
        if not path.is_dir() or not any(file.suffix in WEIGHT_SUFFIXES for file in path.iterdir()):
            return auto.from_config(config, dtype=torch.float32), f"random, seed {seed}"
        model, loading = auto.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below in one line, where transformers prints a table
        )
    for name, stored, wanted in sorted(loading["mismatched_keys"]):
        problem = f"the checkpoint has {name} {tuple(stored)}, the configuration asks for {tuple(wanted)}"
        raise ExportError(str(path), problem, "leave out --image-size" if name.endswith("position_embeddings") else "")
    return model, _loaded(sorted(loading["missing_keys"]), seed)


def _loaded(missing: list[str], seed: int) -> str:
    if not missing:
        return "loaded"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"loaded, except (random, seed {seed}): {', '.join(missing[:3])}{more}"


def timm_source(name: str, image_size: int | None, seed: int) -> ExportSource:
    """Build a timm model with random weights.

    Raises:
        ExportError: timm is missing, or does not know the name or the image size.
    """
    where = f"timm:{name}"
    timm = _imported("timm", where, "pip install timm")
    options = {} if image_size is None else {"img_size": image_size}
    with foreign_code(where, "timm cannot build the model"), quiet():
        model = timm.create_model(name, pretrained=False, **options)
        channels, height, width = model.pretrained_cfg["input_size"]
    inputs = random_images(channels, image_size or height, image_size or width)
    return ExportSource(module=model, inputs=inputs, input_name="input", weights=f"random, seed {seed}")


def _imported(name: str, where: str, hint: str) -> ModuleType:
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(where, f"needs {name}, which cannot be imported: {error}", hint) from error
