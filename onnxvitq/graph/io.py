"""Model files: read and checked, turned into a graph and back, saved atomically.

A round trip through graphsurgeon drops the model's metadata, so it travels beside the graph in ``LoadedModel``.
"""

import contextlib
import glob
import hashlib
import logging
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxvitq.core.errors import (
    InvalidGraphError,
    OutputError,
    RewriteError,
    UnsupportedModelError,
    UnsupportedOpsetError,
)
from onnxvitq.core.tensors import FloatArray, InputSpec
from onnxvitq.graph.batch import freeze_batch
from onnxvitq.graph.passes.fused import FUSED_DOMAIN, OPENED
from onnxvitq.graph.shapes import infer_shapes, stated_shapes

logger = logging.getLogger(__name__)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR  # it has a logger of its own, which reports every fold

OLDEST_OPSET = 11
PER_AXIS_OPSET = 13  # the first whose DequantizeLinear takes one scale per channel
PROTOBUF_LIMIT = 1900 * 2**20  # bytes; a message cannot pass 2 GiB, and some room is needed for the graph itself
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
    }
)
SMALLEST_EXTERNAL = 1024  # bytes; what is smaller stays in the model, where onnxruntime can read shapes and scales
DIGITS = 16  # hexadecimal, of what a file of weights is called by
STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A float model that passed every check on the way in. ``size`` is in bytes, external data included; ``files``
    are the model and its external data.

    ``graph`` is sorted, its nodes are named and its shapes inferred. It owns its weights: the protobuf message is gone,
    or every weight would be in memory twice.
    """

    path: Path
    graph: gs.Graph
    metadata: Mapping[str, str]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    size: int
    files: tuple[Path, ...]


def load_model(path: Path, *, batch: int | None = None) -> LoadedModel:
    """Read a float model, check it, inline its functions and bring its opset to at least 13; freeze its batch if one is given.

    Raises:
        InvalidGraphError: missing, truncated, not ONNX, refused by the checker, or with a NaN in a weight.
        UnsupportedOpsetError: older than opset 11 or newer than the installed onnx.
        UnsupportedModelError: already quantized, already fused by onnxruntime, not float32, or of another static batch.
    """
    proto, sizes = _read(path)
    _refuse_opset(path, proto)
    _refuse_unsupported(path, proto)
    _check(path)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
        _refuse_unsupported(path, proto)  # what the functions' bodies hold
    if _opset(proto) < PER_AXIS_OPSET:
        proto = _convert(path, proto, PER_AXIS_OPSET)
    _refuse_weights(path, proto)
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
        sizes = {file: file.stat().st_size for file in (path, *sorted(_external_files(proto, path.parent)))}
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


def _external_files(proto: onnx.ModelProto, folder: Path) -> set[Path]:
    return {
        folder / entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _opset(proto: onnx.ModelProto) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS), default=0)


def _refuse_opset(path: Path, proto: onnx.ModelProto) -> None:
    opset, newest = _opset(proto), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedOpsetError(
            str(path),
            f"expected opset {OLDEST_OPSET} to {newest}, got {opset}",
            "export it again with opset_version=17",
        )


def _refuse_unsupported(path: Path, proto: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in proto.functions}
    for node in all_nodes(proto.graph):
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise UnsupportedModelError(
                str(path), f"already quantized: node {node.name!r} is a {node.op_type}", "give the float model"
            )
        if (
            node.domain.startswith(FUSED_DOMAIN)
            and (node.domain, node.op_type) not in local
            and not _can_be_opened(node)
        ):
            raise UnsupportedModelError(
                str(path),
                f"already fused by onnxruntime: node {node.name!r} is a {node.domain} {node.op_type}",
                "give the model as exported, before optimisation",
            )


def _can_be_opened(node: onnx.NodeProto) -> bool:
    """Whether a fused operator is one that ``passes.fused`` writes in standard operators again."""
    batched = any(field.name.startswith("transBatch") and field.i for field in node.attribute)
    return node.domain == FUSED_DOMAIN and node.op_type in OPENED and not batched


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in the bodies of If, Loop and Scan included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))  # the file: the message would be serialised first, every weight of it
    except onnx.checker.ValidationError as error:
        raise InvalidGraphError(str(path), f"the ONNX checker refuses it: {first_line(error)}") from error


def _convert(path: Path, proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except RuntimeError as error:
        raise UnsupportedOpsetError(
            str(path),
            f"opset {_opset(proto)} cannot be raised to {opset}: {first_line(error)}",
            "export it with opset_version=17",
        ) from error


def _refuse_weights(path: Path, proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE):
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise UnsupportedModelError(
                str(path), f"expected float32 weights, got {kind} in {tensor.name!r}", "export the model in float32"
            )
    for name, tensor in _constants(proto):
        values = onnx.numpy_helper.to_array(tensor) if tensor.data_type == onnx.TensorProto.FLOAT else np.zeros(0)
        if np.isfinite(values).all():
            continue
        # Masks legitimately hold -inf; a weight of a MatMul, Gemm, Conv or normalisation never does.
        if np.isnan(values).any() or _is_weight(proto, name):
            raise InvalidGraphError(str(path), f"weight {name!r} holds a NaN or an infinity", "did training diverge?")


def _constants(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every constant by name, whether an initializer or made by a Constant node."""
    yield from ((tensor.name, tensor) for tensor in proto.graph.initializer)
    for node in all_nodes(proto.graph):
        if node.op_type == "Constant":
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def _is_weight(proto: onnx.ModelProto, name: str) -> bool:
    kinds = {"MatMul", "Gemm", "Conv", "LayerNormalization", "BatchNormalization"}
    return any(name in node.input for node in all_nodes(proto.graph) if node.op_type in kinds)


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
    """A model as a graphsurgeon graph, sorted, nodes named, shapes inferred, weights read out of the message."""
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


def constants(graph: gs.Graph, names: Collection[str]) -> dict[str, FloatArray]:
    """Values of those of the named tensors that are constants."""
    tensors = graph.tensors()
    found = [name for name in sorted(names) if isinstance(tensors[name], gs.Constant)]
    return {name: np.asarray(tensors[name].values, np.float32) for name in found}


def with_outputs(graph: gs.Graph, names: Iterable[str]) -> gs.Graph:
    """A copy of a graph whose outputs are the named tensors; weights are shared with the original."""
    copy = graph.copy()
    tensors = copy.tensors()
    copy.outputs = [tensors[name] for name in sorted(set(names))]
    return copy


def _name_nodes(graph: gs.Graph) -> None:
    """Exporters leave names empty or use them twice; a plan needs unique ones."""
    taken: set[str] = set()
    for index, node in enumerate(graph.nodes):
        name = node.name or f"{node.op}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name


def to_proto(graph: gs.Graph, metadata: Mapping[str, str], *, to_load: bool = False) -> onnx.ModelProto:
    """The graph as a model with that metadata.

    to_load: so that a session loads fast and small. The runtime infers intermediate shapes itself; those that it cannot are
    stated, which takes an inference of our own. Constants are in the order of their sizes.
    """
    graph.cleanup().toposort()
    stated = stated_shapes(graph) if to_load else []
    proto = gs.export_onnx(graph, do_type_check=False)  # onnxruntime finds the type of an output that states none
    if to_load:
        _put_smallest_first(proto.graph)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)
    used = {node.domain or "" for node in all_nodes(proto.graph)}
    unused = [entry for entry in proto.opset_import if entry.domain and entry.domain not in used]
    for entry in unused:
        proto.opset_import.remove(entry)
    proto.producer_name = "onnxvitq"
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    return proto


def _put_smallest_first(graph: onnx.GraphProto) -> None:
    """Constants by size, those of one size as they are read first.

    Weights in the model's own file are copied twice as a session loads, one after the other, and each copy is freed when the
    next is made. Its place is of use to others only where it is large enough and nothing small was put behind it. (MB at the
    peak of a session, smallest first, as they are read, and as exported: ViT-B 130, 145, 196; ViT-S 55 to 58, 57, 57 to 69;
    Swin-T 81 to 84, 97 to 99, 86 to 97; DeiT-T 26, 29, 29. Largest first: four of six 1 to 45 more, two 1 to 3 less.)
    """
    first_read: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            first_read.setdefault(name, index)
    ordered = sorted(graph.initializer, key=lambda one: (len(one.raw_data), first_read.get(one.name, -1)))
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def check_written(path: Path, where: str) -> None:
    """The full check of ``onnx.checker`` on a model that was written and is not in its place yet.

    Raises:
        RewriteError: the checker refuses it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)  # as a message it would end at 2 GB
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(where, f"the ONNX checker refuses the written graph: {first_line(error)}") from error


def refuse_output(path: Path, model: Path) -> None:
    """Find out before any work whether ``path`` can be written.

    Raises:
        OutputError: it is the input, a folder, or lies in a folder that does not exist or cannot be written to.
    """
    where = str(path)
    if path.exists() and model.exists() and path.samefile(model):
        raise OutputError(where, "the output is the input", "name another file with -o")
    if path.is_dir():
        raise OutputError(where, "expected a file name, got a folder")
    if path.exists() and not path.is_file():  # taking its place would do away with /dev/null itself
        raise OutputError(where, "expected a file name, got a device or a pipe")
    if not path.parent.is_dir():
        raise OutputError(where, f"the folder {str(path.parent)!r} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(where, f"the folder cannot be written to: {error.strerror}") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the file cannot be written; what was at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:  # named before it is made: an interrupt in between leaves nothing behind
        temporary.open("xb").close()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(str(path), f"cannot be written: {error.strerror or first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def data_beside(proto: onnx.ModelProto, path: Path, *, asked: bool) -> Path | None:
    """The file for the weights of the model at ``path``, if they are to lie in one of their own or a message cannot hold them
    (and any is large enough).

    It is called by what is in it: a model that is replaced has its own weights beside it before and after.
    """
    sizes = [len(tensor.raw_data) for tensor in proto.graph.initializer]
    if max(sizes, default=0) < SMALLEST_EXTERNAL or not (asked or sum(sizes) >= PROTOBUF_LIMIT):
        return None
    digest = hashlib.sha256()
    for tensor in proto.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    return path.with_name(f"{path.name}.{digest.hexdigest()[:DIGITS]}.data")


@contextlib.contextmanager
def atomic_model(path: Path) -> Iterator[Path]:
    """``atomic_file`` for a model whose weights may lie in a file beside it (``data_beside``). When the block ends, well or
    not, such files that the model at ``path`` does not name are gone.

    Raises:
        OutputError: the file cannot be written; what was at ``path`` is untouched.
    """
    try:
        with atomic_file(path) as temporary:
            yield temporary
    finally:
        files = set(path.parent.glob(f"{glob.escape(path.name)}.{DIGITS * '[0-9a-f]'}.data"))
        for file in files - (_named_by(path) if files else set()):
            file.unlink(missing_ok=True)


def _named_by(path: Path) -> set[Path]:
    """Files that hold weights of the model there, if one is."""
    try:
        return _external_files(onnx.load(path, format="protobuf", load_external_data=False), path.parent)
    except (OSError, DecodeError):
        return set()


def save_model(proto: onnx.ModelProto, path: Path, data: Path | None = None) -> int:
    """Write a model as one file, or with its weights in ``data`` beside it, which is replaced in one step; its size in bytes.
    In the latter case ``proto`` loses its weights.

    Raises:
        OutputError: ``data`` cannot be written.
    """
    if data is None:
        onnx.save(proto, path, format="protobuf")  # whatever the file is called
        return path.stat().st_size
    with atomic_file(data) as temporary:
        temporary.unlink()  # onnx writes weights into no file that exists
        _save_in_two(proto, path, temporary.name)
        temporary.chmod(path.stat().st_mode)  # onnx makes it for its owner alone
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    onnx.save(proto, path, format="protobuf")
    return path.stat().st_size + data.stat().st_size


def save_for_session(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model for onnxruntime to open once, weights in a file beside it: it maps that file, so they are in memory once
    less, and models over 2 GB work. ``proto`` loses its weights.
    """
    _save_in_two(proto, path, f"{path.name}.data")


def _save_in_two(proto: onnx.ModelProto, path: Path, location: str) -> None:
    onnx.save(
        proto,
        path,
        format="protobuf",
        save_as_external_data=True,
        location=location,
        size_threshold=SMALLEST_EXTERNAL,
    )
