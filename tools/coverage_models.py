"""How a model of tools/coverage.py is made from its entry in coverage_architectures.py: nothing in it trivially symmetric.

Weights are random under a fixed seed; so are gains, biases, running statistics, tokens and positions, which fresh models
leave at 0 or 1.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

Extra = Callable[[torch.Tensor], Any]  # a further argument of the model, made from the image


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model of transformers: names of its classes, the options of its configuration, and what goes in and out.

    shape: of one input without its batch axis; with ``batched`` False of the whole input. outputs: attributes of what the
    model returns; of a list, the last. random: two runs on one image differ, so that
    no graph equals torch. refused: why onnxvitq has to refuse it; empty where it has to be quantized.
    """

    name: str
    model: str
    config: str
    options: Mapping[str, Any]
    shape: tuple[int, ...] = (3, 32, 32)
    outputs: tuple[str, ...] = ("last_hidden_state",)
    input: str = "pixel_values"
    extra: Mapping[str, Extra] = field(default_factory=dict)
    batched: bool = True
    seed: int = 0
    random: bool = False
    refused: str = ""


class Wrapped(nn.Module):
    """The image in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.model, self.architecture = model, architecture

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs that the architecture names."""
        wanted = self.architecture
        result = self.model(**{wanted.input: image}, **{name: make(image) for name, make in wanted.extra.items()})
        values = [result if name == "" else getattr(result, name) for name in wanted.outputs]
        return tuple(value[-1] if isinstance(value, (tuple, list)) else value for value in values)


class PlainEncoder(nn.Module):
    """Patches, a class token and torch's own nn.TransformerEncoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config["width"]
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 17, width))
        options = {key: value for key, value in config.items() if key not in {"width", "heads", "layers"}}
        layer = nn.TransformerEncoderLayer(width, config["heads"], 2 * width, dropout=0.0, **options)
        self.encoder = nn.TransformerEncoder(layer, config["layers"], enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)
        self.sequence_first = not config["batch_first"]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Ten logits."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = self.encoder(x.transpose(0, 1)).transpose(0, 1) if self.sequence_first else self.encoder(x)
        return self.head(x[:, 0])


def build(architecture: Architecture) -> Wrapped:
    """The module in evaluation mode, every parameter drawn from the architecture's seed."""
    torch.manual_seed(architecture.seed)
    if architecture.model == "PlainEncoder":
        model: nn.Module = PlainEncoder(architecture.options)
    else:
        model = _named(architecture.model)(_named(architecture.config)(**architecture.options))
    draw(model)
    return Wrapped(model, architecture).eval()


def _named(name: str) -> Any:
    """A class of transformers, or of one of its model modules where the name has dots."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(f"transformers.models.{module}") if module else transformers, last)


def example(architecture: Architecture, batch: int, seed: int) -> torch.Tensor:
    """Random normal input; of an input without a batch axis, ``batch`` is not used."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *architecture.shape) if architecture.batched else architecture.shape
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Give every parameter and running statistic a random value that keeps activations at a usual size."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2 and name.endswith("weight") and not isinstance(module, nn.Embedding):
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif parameter.ndim <= 1 and not name.endswith("bias"):
                parameter.uniform_(0.5, 1.5)  # gains of norms and layer scales
            else:
                parameter.normal_(0, 0.3)  # biases, tokens, positions, tables
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            statistics: Any = module
            statistics.running_mean.normal_(0, 0.3)
            statistics.running_var.uniform_(0.5, 1.5)
