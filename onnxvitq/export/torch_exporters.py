"""torch's two ONNX exporters behind one signature, and torch's own outputs to compare their graphs with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from onnxvitq.core.errors import ExportError
from onnxvitq.export.foreign import foreign_code, quiet

TORCH_VERSION = torch.__version__.split("+")[0]  # without the build tag (+cpu), which depends on the machine


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """What to export.

    Attributes:
        module: in evaluation mode.
        inputs: example inputs, each (B, ...).
        input_names: of the graph, one an input.
        output_names: of the graph, one an output.
        dynamic_batch: whether B stays open, under the name ``batch``.
        opset: version of the operator set; None leaves it to the exporter.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    opset: int | None


def export_dynamo(request: Request, scratch: Path) -> onnx.ModelProto:  # noqa: ARG001 - the exporters' one signature
    """Export by torch.export: the whole program is captured, constraints on the batch are errors."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        request.module,
        request.inputs,
        dynamo=True,
        verbose=False,
        input_names=list(request.input_names),
        output_names=list(request.output_names),
        dynamic_shapes=tuple({0: batch} for _ in request.inputs) if request.dynamic_batch else None,
        opset_version=request.opset,
    )
    assert program is not None
    return program.model_proto


def export_torchscript(request: Request, scratch: Path) -> onnx.ModelProto:
    """Export by tracing: what Python computed from the example's shapes becomes a constant."""
    file = scratch / "torchscript.onnx"  # a file, since beyond 2 GB this exporter writes weights beside it
    names = (*request.input_names, *request.output_names)
    torch.onnx.export(
        request.module,
        request.inputs,
        file,
        dynamo=False,
        verbose=False,
        input_names=list(request.input_names),
        output_names=list(request.output_names),
        dynamic_axes={name: {0: "batch"} for name in names} if request.dynamic_batch else None,
        opset_version=request.opset,
    )
    return onnx.load(file)


EXPORTERS: Mapping[str, Callable[[Request, Path], onnx.ModelProto]] = {
    "dynamo": export_dynamo,
    "torchscript": export_torchscript,
}


def run_exporter(name: str, request: Request, scratch: Path, where: str) -> onnx.ModelProto:
    """Export with one of ``EXPORTERS``, whose output is suppressed.

    Args:
        name: a key of EXPORTERS.
        request: what to export.
        scratch: an empty folder for the exporter's own files.
        where: the SPEC, for messages.

    Raises:
        ExportError: the exporter failed, or wrote another operator set than requested.
    """
    other = next(key for key in EXPORTERS if key != name)
    hint = f"try --exporter {other}"
    with foreign_code(where, f"the {name} exporter failed", hint), quiet(), torch.no_grad(), _plain_attention():
        model = EXPORTERS[name](request, scratch)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if request.opset is not None and written != request.opset:  # the dynamo exporter falls back with only a warning
        problem = f"the {name} exporter cannot write opset {request.opset}, got {written}"
        raise ExportError(where, problem, f"leave out --opset, or {hint}")
    return model


@contextmanager
def _plain_attention() -> Iterator[None]:
    """A context in which torch's encoder layers run without their fused kernel, which has no ONNX form."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def torch_outputs(module: nn.Module, inputs: tuple[torch.Tensor, ...], where: str) -> list[NDArray[np.generic]]:
    """Torch's outputs, with which those of the exported graph are compared.

    Raises:
        ExportError: the module fails on these inputs, or returns something other than tensors of finite values.
    """
    shapes = [tuple(tensor.shape) for tensor in inputs]
    with foreign_code(where, f"the module does not run on inputs of shape {shapes}"), quiet(), torch.no_grad():
        outputs = module(*inputs)
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    if not isinstance(outputs, (tuple, list)) or not all(isinstance(tensor, torch.Tensor) for tensor in outputs):
        raise ExportError(
            where,
            f"expected the module to return a tensor or a tuple of tensors, got {type(outputs).__name__}",
            "wrap it in a module that returns the tensor of interest",
        )
    if not all(tensor.isfinite().all() for tensor in outputs):
        raise ExportError(where, "expected finite outputs, torch itself returns NaN or infinite values")
    return arrays(outputs, where)


def arrays(tensors: Sequence[torch.Tensor], where: str) -> list[NDArray[np.generic]]:
    """The tensors as numpy arrays.

    Raises:
        ExportError: numpy has no such type (bfloat16).
    """
    with foreign_code(where, "a tensor has no numpy form"):
        return [tensor.detach().numpy() for tensor in tensors]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch draws random numbers from ``seed``; the caller's generator is not affected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
