"""A torch module with example inputs: the result of resolving a SPEC."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from onnxvitq.core.errors import ExportError
from onnxvitq.export.foreign import foreign_code

EXAMPLE_BATCH = 2  # torch.export fixes a size of 1 as a constant, so a dynamic batch needs an example of at least 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportSource:
    """A module to export.

    Attributes:
        module: the model; ``specs.load_source`` puts it on the CPU and in evaluation mode.
        inputs: example inputs, each (B, ...) with the same B.
        input_name: name of the graph's first input.
        weights: where the weights come from, as text.
        preprocessor: JSON text of a ``preprocessor_config.json``; None where there is none.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    input_name: str
    weights: str
    preprocessor: str | None = None


def random_images(channels: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Example inputs: one tensor (EXAMPLE_BATCH, channels, height, width), standard normal, from torch's own seed."""
    return (torch.randn(EXAMPLE_BATCH, channels, height, width),)


def check_inputs(inputs: object, where: str) -> tuple[torch.Tensor, ...]:
    """Accept only a tuple of tensors with one common first axis, the batch.

    Raises:
        ExportError: anything else.
    """
    expected = "expected example_inputs() to return a tuple of tensors"
    if not isinstance(inputs, tuple) or not inputs:
        raise ExportError(where, f"{expected}, got {type(inputs).__name__}", "one input is `return (tensor,)`")
    for tensor in inputs:
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(where, f"{expected}, got {type(tensor).__name__} inside the tuple")
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in {(), (0,)}:
        raise ExportError(where, f"expected example inputs with one common batch axis 0, got shapes {shapes}")
    return tuple(tensor.detach().cpu() for tensor in inputs)


def with_batch(inputs: tuple[torch.Tensor, ...], size: int) -> tuple[torch.Tensor, ...]:
    """The inputs with another batch size: rows repeated in turn, or left out. (B, ...) -> (size, ...)."""
    rows = torch.arange(size) % inputs[0].shape[0]
    return tuple(tensor[rows] for tensor in inputs)


def preprocessor_text(folder: Path) -> str | None:
    """The text of the folder's ``preprocessor_config.json``, None where there is none.

    Raises:
        ExportError: the file is there and cannot be read.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    with foreign_code(str(file), "cannot be read"):
        return file.read_text(encoding="utf-8")
