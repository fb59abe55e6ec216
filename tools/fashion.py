"""The bundled model, its twin with outlier channels, and Fashion-MNIST: what most tools measure on. Needs torch.

The twin computes the same function: channels of the layer norms and of the values are scaled by factors up to 30, and the
layers that read them by the inverse, which is what pretrained transformers look like inside.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

BUNDLED = Path(__file__).parent.parent / "models" / "fashion_vit"
sys.path.insert(0, str(BUNDLED))
import data as data
from model import FashionViT, build, example_inputs

MODEL, CALIBRATION, TEST = BUNDLED / "model.onnx", BUNDLED / "calib", BUNDLED / "test.npz"
PREPROCESSOR_CONFIG = BUNDLED / "preprocessor_config.json"
PREPARED: tuple[object, ...] = ("--preprocessor-config", PREPROCESSOR_CONFIG)
LARGEST, SHARE = 30.0, 0.05  # factor of the largest outlier; share of the channels that are outliers


def export_bundled(path: Path) -> Path:
    """The bundled model, from its definition."""
    return export(build(), path)


def export_twin(path: Path) -> Path:
    """The same function with outlier channels."""
    return export(with_outliers(build(), np.random.default_rng(0)), path)


def with_outliers(model: FashionViT, rng: np.random.Generator) -> FashionViT:
    """The same function with outlier channels in every layer norm and in every value projection (in place)."""
    block: Any
    for block in model.blocks:
        qkv, width = block.attn.qkv, block.attn.proj.in_features
        for norm, reader in ((block.norm1, qkv), (block.norm2, block.fc1)):
            factors = _factors(width, rng)
            norm.weight.data *= factors
            norm.bias.data *= factors
            reader.weight.data /= factors  # (O, I): the channel that grew is read smaller
        factors = _factors(width, rng)
        qkv.weight.data[2 * width :] *= factors[:, None]
        qkv.bias.data[2 * width :] *= factors
        block.attn.proj.weight.data /= factors
    return model


def _factors(width: int, rng: np.random.Generator) -> torch.Tensor:
    """(C,) ones, but for a few channels between 5 and LARGEST."""
    factors = np.ones(width, np.float32)
    chosen = rng.permutation(width)[: max(1, round(SHARE * width))]
    factors[chosen] = rng.uniform(5, LARGEST, len(chosen))
    factors[chosen[0]] = LARGEST
    return torch.from_numpy(factors)


def export(model: FashionViT, path: Path) -> Path:
    """By torch's exporter, dynamic batch."""
    torch.onnx.export(
        model,
        example_inputs(),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    return path


def validation_file(folder: Path) -> Path:
    """The 1,936 training images that neither trained nor calibrated, with labels; needs Debian's dataset-fashion-mnist."""
    images, labels = data.read("train")
    _, _, held_out = data.split_indices(len(images))
    path = folder / "validation.npz"
    np.savez(path, x=images[held_out], y=labels[held_out])
    return path


def tests_file(folder: Path) -> Path:
    """The 10,000 test images, with labels; needs Debian's dataset-fashion-mnist."""
    images, labels = data.read("t10k")
    path = folder / "test.npz"
    np.savez(path, x=images, y=labels)
    return path
