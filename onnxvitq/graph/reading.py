"""Model files read, checked and turned into graphs.

A round trip through graphsurgeon drops the model's metadata, so it travels beside the graph in ``LoadedModel``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxvitq.core.errors import InvalidGraphError, UnsupportedModelError, UnsupportedOpsetError, first_line
from onnxvitq.core.tensors import InputSpec
from onnxvitq.graph.batch import freeze_batch
from onnxvitq.graph.checking import check_file, refuse_opset, refuse_unsupported, refuse_weights
from onnxvitq.graph.messages import external_files, opset_of
from onnxvitq.graph.shapes import infer_shapes

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR  # it has a logger of its own, which reports every fold

PER_AXIS_OPSET = 13  # the first whose DequantizeLinear takes one scale per channel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A float model that passed every check on the way in.

    Attributes:
        path: the model file.
        graph: sorted, every node with a unique name, shapes inferred. It owns its weights: the protobuf message is gone, or
            every weight would be in memory twice.
        metadata: the model's own, key -> value.
        inputs: name, type and shape of each input.
        outputs: names of the outputs.
        size: bytes of all ``files``.
        files: the model file and the files of its external data.
    """

    path: Path
    graph: gs.Graph
    metadata: Mapping[str, str]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    size: int
    files: tuple[Path, ...]


def load_model(path: Path, *, batch: int | None = None) -> LoadedModel:
    """Read a float model, check it, inline its functions and bring its operator set to at least version 13.

    Args:
        path: the model file; external data lies beside it.
        batch: size that the first dimension of every input gets; None leaves it as it is.

    Raises:
        InvalidGraphError: missing, truncated, not ONNX, refused by the checker, or with a NaN in a weight.
        UnsupportedOpsetError: older than opset 11 or newer than the installed onnx.
        UnsupportedModelError: already quantized, already fused by onnxruntime, not float32, or of another static batch.
    """
    proto, sizes = _read(path)
    refuse_opset(path, proto)
    refuse_unsupported(path, proto)
    check_file(path)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
        refuse_unsupported(path, proto)  # what the functions' bodies hold
    if opset_of(proto) < PER_AXIS_OPSET:
        proto = _convert(path, proto, PER_AXIS_OPSET)
    refuse_weights(path, proto)
    if batch is not None:
        freeze_batch(str(path), proto, batch)
    constants = {initializer.name for initializer in proto.graph.initializer}
    inputs = tuple(_input_spec(path, value) for value in proto.graph.input if value.name not in constants)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return LoadedModel(
        path=path,
        graph=to_graph(proto),
        metadata=metadata,
        inputs=inputs,
        outputs=tuple(value.name for value in proto.graph.output),
        size=sum(sizes.values()),
        files=tuple(sizes),
    )


def _read(path: Path) -> tuple[onnx.ModelProto, dict[Path, int]]:
    where = str(path)
    if not path.exists():
        raise InvalidGraphError(where, "no such file")
    if path.is_dir():
        raise InvalidGraphError(where, "expected an ONNX file, got a folder")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)  # whatever the file is called
        sizes = {file: file.stat().st_size for file in (path, *sorted(external_files(proto, path.parent)))}
        onnx.load_external_data_for_model(proto, str(path.parent))
    except DecodeError as error:
        raise InvalidGraphError(where, "not an ONNX model, or truncated", "is the download complete?") from error
    except (OSError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise InvalidGraphError(
            where, f"cannot be read: {first_line(error)}", "external data must lie beside the model"
        ) from error
    if not proto.graph.node:
        raise InvalidGraphError(where, "not an ONNX model: it holds no nodes")
    return proto, sizes


def _convert(path: Path, proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except RuntimeError as error:
        raise UnsupportedOpsetError(
            str(path),
            f"opset {opset_of(proto)} cannot be raised to {opset}: {first_line(error)}",
            "export it with opset_version=17",
        ) from error


def _input_spec(path: Path, value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise UnsupportedModelError(str(path), f"input {value.name!r} is not a tensor", "expected images or arrays")
    if tensor.elem_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise UnsupportedModelError(str(path), f"input {value.name!r} is half precision", "export the model in float32")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    return InputSpec(name=value.name, dtype=dtype, shape=shape)


def to_graph(proto: onnx.ModelProto) -> gs.Graph:
    """A model as a graphsurgeon graph: sorted, nodes named, shapes inferred, weights copied out of the message."""
    graph = gs.import_onnx(proto)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            tensor.values = np.array(tensor.values)  # a copy: a view would keep the message alive,
    # and so would the list of opsets, which graphsurgeon takes as it is.
    graph.import_domains = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in proto.opset_import]
    _name_nodes(graph)
    for tensor in graph.inputs:  # a size without a name could not be told from another one
        if tensor.shape is not None:
            tensor.shape = [f"{tensor.name}.{axis}" if size is None else size for axis, size in enumerate(tensor.shape)]
    for node in graph.nodes:
        for tensor in node.outputs:
            if not any(tensor is output for output in graph.outputs):
                tensor.shape = None  # an exporter's own annotation may be wrong, and would win
    graph.toposort()
    infer_shapes(graph)
    return graph


def _name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique name, which a plan needs: exporters leave names empty or use them twice."""
    taken: set[str] = set()
    for index, node in enumerate(graph.nodes):
        name = node.name or f"{node.op}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name
