"""What several packages' tests share: a small Vision Transformer, exported once in each form that is asked for."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest

Exporter = Callable[[str, bool], onnx.ModelProto]


@pytest.fixture(scope="session")
def export_vit(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """``export_vit(exporter, dynamic_batch)``: two blocks, width 32, two heads, 17 tokens; static means a batch of 1."""
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
