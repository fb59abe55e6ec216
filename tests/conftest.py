"""What several packages' tests share: a small Vision Transformer, exported once in each form that is asked for."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from case_fixtures import case_of, transformer_case  # noqa: F401
from PIL import Image
from small_layers import blockmap, hybrid, layers, more_stats, plan, stats, with_products  # noqa: F401

from onnxvitq.api import Result, quantize
from onnxvitq.core.config import QuantConfig

Exporter = Callable[[str, bool], onnx.ModelProto]


@pytest.fixture(scope="session")
def export_vit(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """``export_vit(exporter, dynamic_batch)``: two blocks of width 32, two heads, 17 tokens; static is a batch of 1."""
    import torch
    from torch import nn
    from torch.nn import functional

    from onnxvitq.export.torch_exporters import Request, run_exporter, seeded

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
            self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, width = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.proj(mixed.reshape(batch, tokens, width))
            return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 32, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.position = nn.Parameter(torch.randn(1, 17, 32))
            self.blocks = nn.ModuleList([Block(), Block()])
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.patch(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    with seeded(0):
        module = ViT().eval()

    @cache
    def export(exporter: str, dynamic_batch: bool) -> onnx.ModelProto:
        scratch = tmp_path_factory.mktemp("export")
        request = Request(
            module=module,
            inputs=(torch.zeros(2 if dynamic_batch else 1, 3, 16, 16),),
            input_names=("image",),
            output_names=("logits",),
            dynamic_batch=dynamic_batch,
            opset=None,
        )
        return run_exporter(exporter, request, Path(scratch), "the tests' ViT")

    return export


@pytest.fixture(scope="session")
def vit_file(export_vit: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Vision Transformer as a file, dynamic batch; nobody writes to it or beside it."""
    path = tmp_path_factory.mktemp("vit") / "vit.onnx"
    onnx.save(export_vit("torchscript", True), path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 colour images, 20 x 24 pixels: a gradient and noise, each of its own brightness."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(16):
        ramp = np.linspace(0, 12 * index, 24)[None, :, None]
        pixels = np.clip(rng.normal(60 + ramp, 30, (20, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def quantized(vit_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The small Vision Transformer quantized with the images, with default settings; nobody writes to its file."""
    return quantize(vit_file, images, tmp_path_factory.mktemp("quantized") / "vit_int8.onnx")


@pytest.fixture(scope="session")
def unmapped(vit_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """As ``quantized``, its channels and nodes as they are found in the float model: the plan fits that one's graph."""
    config = QuantConfig(skip=("rotation", "channels", "online-channels", "softmax"), candidates=4)
    return quantize(vit_file, images, tmp_path_factory.mktemp("unmapped") / "vit_int8.onnx", config)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two to eight processes for the whole suite; one where paths were named, which is sooner done than started."""
    return min(8, max(2, os.cpu_count() or 2)) if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0
