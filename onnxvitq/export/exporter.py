"""From SPEC, the name of a model, to a checked ONNX file. torch is loaded only when ``export_model`` runs.

The file is written to a temporary folder beside its destination, passed through onnx's checker and onnxruntime, compared
with torch, and only then moved to its name: a failure or Ctrl-C leaves what was there before.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxvitq.core.errors import ConfigError, ExportError, OutputError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.export.foreign import foreign_code

if TYPE_CHECKING:
    from onnxvitq.export.source import ExportSource

logger = logging.getLogger(__name__)

Array = NDArray[np.generic]
Runner = Callable[[Path, Mapping[str, np.ndarray]], list[np.ndarray]]

EXPORTER_KEY = "onnxvitq.exporter"
PREPROCESSOR_KEY = "preprocessor_config.json"
PROTOBUF_LIMIT = 2**31 - 2**20  # a protobuf file ends at 2 GB; the graph itself needs a little of that


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        exporter: which of torch's two exporters to use.
        dynamic_batch: whether the graph takes any batch size.
        batch: batch size of a graph that is not dynamic.
        opset: version of the operator set; None leaves it to the exporter.
        image_size: pixels of a side, in place of the model's own; None keeps that.
        seed: of random weights and example images.
        tolerance: largest accepted difference from torch, relative to the largest output. onnxruntime adds up float32
            products in another order, which costs about 1e-6 in a shallow and 1e-4 in a deep network; a wrong graph is off by
            1e-2 and more.
    """

    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    dynamic_batch: bool = True
    batch: int = 1
    opset: int | None = None
    image_size: int | None = None
    seed: int = 0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.exporter not in {"dynamo", "torchscript"}:
            raise ConfigError("exporter", f"expected dynamo or torchscript, got {self.exporter!r}")
        for name in ("batch", "opset", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"expected 1 or more, got {value}")
        if not self.tolerance > 0:
            raise ConfigError("tolerance", f"expected more than 0, got {self.tolerance}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The written file.

    Attributes:
        path: of the ONNX file.
        exporter: which exporter wrote it.
        opset: version of the operator set.
        inputs: name, type and shape of each input.
        max_difference: max |onnxruntime - torch| / max |torch|, the largest over outputs and batch sizes tried.
        tolerance: largest ``max_difference`` that was accepted.
        weights: where the weights come from (a configuration alone gives random ones).
        preprocessing: the parsed ``preprocessor_config.json`` that is in the model's metadata; None where there was none.
    """

    path: Path
    exporter: str
    opset: int
    inputs: tuple[InputSpec, ...]
    max_difference: float
    tolerance: float
    weights: str
    preprocessing: Mapping[str, Any] | None


def export_model(spec: str, output: Path, options: ExportOptions, *, run: Runner) -> ExportResult:
    """Export the model that SPEC names, and write it if its outputs are torch's.

    Args:
        spec: what to export; ``onnxvitq.export.specs`` lists the forms.
        output: the ONNX file to write; weights beyond 2 GB go to ``<output>.data`` beside it.
        options: of the export.
        run: runs an ONNX file in onnxruntime on named inputs and returns its outputs in order.

    Raises:
        ExportError: the spec leads to no module, the exporter failed, or its graph is invalid or differs from torch.
        OutputError: ``output`` cannot be written.
    """
    try:
        from onnxvitq.export import specs, torch_exporters
    except ModuleNotFoundError as error:
        hint = "install the extra: onnxvitq[torch]"
        raise ExportError(spec, f"exporting needs {error.name}, which is not installed", hint) from error
    with _scratch_folder(output) as scratch, torch_exporters.seeded(options.seed):
        source = specs.load_source(spec, options.image_size, options.seed)
        preprocessing = _parsed(source.preprocessor, spec)
        model, cases = _exported(source, options, scratch, spec)
        model = _with_metadata(model, f"{options.exporter} torch {torch_exporters.TORCH_VERSION}", source.preprocessor)
        candidate = scratch / output.name
        _write(model, candidate)
        with foreign_code(spec, "the exported graph fails onnx.checker"):
            onnx.checker.check_model(candidate, full_check=True)
        difference = float(np.max([_difference(candidate, case, run, spec) for case in cases]))
        if not difference <= options.tolerance:  # NaN fails too
            problem = (
                f"the exported graph differs from torch by {difference:.2g}, expected {options.tolerance:.2g} or less"
            )
            raise ExportError(spec, problem, "try the other --exporter")
        _move_into_place(candidate, output)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    logger.info("exported %s to %s: opset %d, difference from torch %.2g", spec, output, opset, difference)
    return ExportResult(
        path=output,
        exporter=options.exporter,
        opset=opset,
        inputs=_input_specs(model),
        max_difference=difference,
        tolerance=options.tolerance,
        weights=source.weights,
        preprocessing=preprocessing,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Case:
    """Inputs, and torch's outputs for them.

    Attributes:
        feeds: input name -> array.
        expected: outputs, in the order of the graph.
    """

    feeds: Mapping[str, Array]
    expected: Sequence[Array]


def _exported(
    source: "ExportSource", options: ExportOptions, scratch: Path, spec: str
) -> tuple[onnx.ModelProto, tuple[_Case, ...]]:
    """The exporter's graph, and torch's outputs at each batch size that the graph has to work for."""
    from onnxvitq.export import torch_exporters
    from onnxvitq.export.source import EXAMPLE_BATCH, with_batch

    size = max(EXAMPLE_BATCH, source.inputs[0].shape[0]) if options.dynamic_batch else options.batch
    sizes = (size, 1, size + 1) if options.dynamic_batch else (size,)
    input_names = (source.input_name, *(f"input_{i}" for i in range(1, len(source.inputs))))
    cases = []
    for inputs in (with_batch(source.inputs, other) for other in sizes):
        feeds = dict(zip(input_names, torch_exporters.arrays(inputs, spec), strict=True))
        cases.append(_Case(feeds=feeds, expected=torch_exporters.torch_outputs(source.module, inputs, spec)))
    request = torch_exporters.Request(
        module=source.module,
        inputs=with_batch(source.inputs, size),
        input_names=input_names,
        output_names=_output_names(cases[0].expected),
        dynamic_batch=options.dynamic_batch,
        opset=options.opset,
    )
    return torch_exporters.run_exporter(options.exporter, request, scratch, spec), tuple(cases)


def _output_names(outputs: Sequence[Array]) -> tuple[str, ...]:
    """Names of the outputs: ``logits`` for the first if it is one row an image, else ``features``; others are numbered."""
    first = "logits" if outputs[0].ndim == 2 else "features"
    return (first, *(f"output_{i}" for i in range(1, len(outputs))))


def _with_metadata(model: onnx.ModelProto, exporter: str, preprocessor: str | None) -> onnx.ModelProto:
    """The model without anything specific to this machine, and with metadata that say where it comes from.

    The exporters leave stack traces, source paths and class names on graph, nodes and values.
    """
    _strip(model)
    model.producer_name, _, model.producer_version = exporter.rpartition(" ")
    entries = {EXPORTER_KEY: exporter} | ({PREPROCESSOR_KEY: preprocessor} if preprocessor is not None else {})
    onnx.helper.set_model_props(model, entries)
    return model


def _strip(message: Any) -> None:
    """Clear ``doc_string`` and ``metadata_props`` of a protobuf message and of everything inside it."""
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                _strip(part)


def _parsed(preprocessor: str | None, spec: str) -> Mapping[str, Any] | None:
    if preprocessor is None:
        return None
    with foreign_code(spec, "preprocessor_config.json is not JSON"):
        parsed = json.loads(preprocessor)
    if not isinstance(parsed, dict):
        raise ExportError(spec, f"expected an object in preprocessor_config.json, got {type(parsed).__name__}")
    return parsed


def _difference(file: Path, case: _Case, run: Runner, spec: str) -> float:
    """The largest max |got - expected| / max |expected| of all outputs; NaN where an output is NaN."""
    with foreign_code(spec, "onnxruntime cannot run the exported graph", "try the other --exporter"):
        outputs = run(file, case.feeds)
    got, expected = ([array.shape for array in arrays] for arrays in (outputs, case.expected))
    if got != expected:
        raise ExportError(
            spec, f"the exported graph returns shapes {got}, torch {expected}", "try the other --exporter"
        )
    differences = []
    for output, reference in zip(outputs, case.expected, strict=True):
        wanted = reference.astype(np.float64)
        scale = np.abs(wanted).max(initial=0.0) or 1.0  # all zeros: the difference itself counts
        differences.append(np.abs(output - wanted).max(initial=0.0) / scale)
    return float(np.max(differences))


def _input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    specs = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        specs.append(InputSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(specs)


@contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output``, so that the last step is a rename; gone afterwards, whatever happens.

    Raises:
        OutputError: ``output`` is a folder, or nothing can be written beside it.
    """
    if output.is_dir():
        raise OutputError(str(output), "expected a file to write, got a folder")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise OutputError(str(output), f"cannot be written: {error.strerror}", "does the folder exist?") from error
    with folder as name:
        yield Path(name)


def _write(model: onnx.ModelProto, file: Path) -> None:
    """Write one file, or beyond protobuf's limit the graph and ``<file>.data`` with the weights."""
    try:
        if sum(tensor.ByteSize() for tensor in model.graph.initializer) < PROTOBUF_LIMIT:
            file.write_bytes(model.SerializeToString(deterministic=True))
        else:
            onnx.save_model(model, file, save_as_external_data=True, location=f"{file.name}.data")
    except OSError as error:
        raise OutputError(file.name, f"cannot be written: {error.strerror}") from error


def _move_into_place(candidate: Path, output: Path) -> None:
    """Move the weights, if they are a file of their own, and then the graph that refers to them."""
    weights = candidate.with_name(f"{candidate.name}.data")
    try:
        if weights.is_file():
            weights.replace(output.with_name(weights.name))
        candidate.replace(output)
    except OSError as error:
        raise OutputError(str(output), f"cannot be written: {error.strerror}") from error
