"""A DeiT-style classifier for 28 x 28 grey images: the definition that was trained and exported.

Glossary for the shape comments: B images, T tokens (class token + patches), C width, H heads, D head width.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("weights.pt")


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, C) -> (B, T, C)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class FashionViT(nn.Module):
    """Patch embedding by a strided convolution, class token, learned positions, linear head."""

    def __init__(
        self,
        *,
        size: int = 28,
        patch: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=4) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        # Positions start as large as the patches' features, or a short training learns them late.
        nn.init.trunc_normal_(self.cls_token, std=0.2)
        nn.init.trunc_normal_(self.pos_embed, std=0.2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 1, 28, 28) -> (B, classes)
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # (B, T - 1, C)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def build() -> FashionViT:
    """The trained model, in evaluation mode (the factory that ``onnxvitq export`` calls)."""
    model = FashionViT()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model.eval()


def example_inputs() -> tuple[torch.Tensor, ...]:
    """A batch of the right shape for the exporters: (B, 1, 28, 28)."""
    return (torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)
