"""Shapes of all tensors of a graph: onnx's inference, helped where it gives up."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxvitq.graph.query import is_static
from onnxvitq.graph.symbolic import computed_shapes, multiple, unify_names

MAX_INFERENCES = 8  # computed reshapes behind each other; real graphs need up to five
NUMBERED = "unk__"  # what onnx calls a size that it does not know
INFERRED_VALUES = 1024  # elements up to which a constant may be shape arithmetic


def infer_shapes(graph: gs.Graph) -> None:
    """Set the shape and type of every tensor that can be inferred.

    Where onnx's inference gives up on a computed Reshape, our own integer arithmetic (``graph.symbolic``) finds the shape of
    its result, and the inference goes on from there. A size that stays unknown gets a name of its own.
    """
    pinned: dict[str, list[int | str]] = {}
    for _ in range(MAX_INFERENCES):
        inferred = _infer_once(graph, pinned)
        # Arithmetic comes first: with its shapes, inference may find those that are only kept from before now.
        found = computed_shapes(graph, inferred) or _kept_shapes(graph, inferred)
        if not found:
            break
        pinned.update(found)
    unify_names(graph)


def stated_shapes(graph: gs.Graph) -> list[onnx.ValueInfoProto]:
    """Shapes of the tensors that integer linear layers read and compute, in terms of the sizes of the graph's inputs.

    onnxruntime does not follow an open size through joined rows. Without names for it, it compares every buffer with every
    other as it loads (DeiT-T: a third of the time to load it). What it can compare it shares, and what is shared is not given
    back to the allocator until the last reader is done. (All Reshapes stated: 16 to 31 MB more at the peak of Swin-T, 3 of
    ViT-S, and no run was faster.) So the widest rows, those that a layer makes wider than it reads, have a name each: an MLP
    alone needs them. (Peak of DeiT-T 24.6 MB, 27.7 with one name for all; it loads as fast.)

    Args:
        graph: sorted; its tensors' shapes are inferred anew.
    """
    infer_shapes(graph)
    sizes = {size for tensor in graph.inputs for size in tensor.shape or () if isinstance(size, str)}
    stated = []
    for node in graph.nodes:
        tensor = node.outputs[0]
        if tensor in graph.outputs or not _is_expressed(tensor, sizes):
            continue
        shape = _stated_shape(node, tensor)
        if shape is not None:
            stated.append(value_info(tensor.name, tensor.dtype, shape))
    return stated


def _is_expressed(tensor: gs.Tensor, sizes: Collection[str]) -> bool:
    """Whether every size of a tensor is a number or a multiple of one of the named ``sizes``."""
    return tensor.shape is not None and all(
        isinstance(size, int) or (isinstance(size, str) and multiple(size)[0] in sizes) for size in tensor.shape
    )


def _stated_shape(node: gs.Node, tensor: gs.Tensor) -> list[int | str] | None:
    """The shape to state for a node's output; None where the runtime infers it, or should not share the buffer."""
    shape = list(tensor.shape)
    if node.op == "Reshape":
        return (
            shape if len(shape) == 2 or any(reader.op == "DynamicQuantizeLinear" for reader in tensor.outputs) else None
        )
    inner = node.inputs[0].shape if node.op in {"Gemm", "MatMulInteger"} else None
    if inner is None or inner[-1] == shape[-1] or not is_static([inner[-1], shape[-1]]) or is_static(shape):
        return None
    if inner[-1] < shape[-1]:
        open_axis = next(axis for axis, size in enumerate(shape) if isinstance(size, str))
        shape[open_axis] = f"{tensor.name} rows"
    return shape


def unknown_tensors(graph: gs.Graph) -> list[str]:
    """Names of the computed tensors whose rank is not known: those behind an If or a Loop, for example."""
    return [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name and tensor.shape is None]


def _kept_shapes(graph: gs.Graph, inferred: Collection[str]) -> dict[str, list[int | str]]:
    """Shapes that tensors have from elsewhere (observed at run time) and that inference does not find.

    Names of an earlier run mean nothing in this one; each becomes one of its own.
    """
    kept = [tensor for node in graph.nodes for tensor in node.outputs if tensor.name not in inferred and tensor.shape]
    return {
        tensor.name: [f"{tensor.name}.{axis}" if isinstance(n, str) else n for axis, n in enumerate(tensor.shape)]
        for tensor in kept
    }


def _infer_once(graph: gs.Graph, pinned: Mapping[str, list[int | str]]) -> set[str]:
    """Run onnx's inference once, with the pinned shapes given, and return the names of the tensors whose shape it found.

    onnx numbers the sizes that it does not know anew in every run; a number gets the name of the first tensor that has it, or
    a shape of this run could seem to equal one of another.
    """
    message = onnx.shape_inference.infer_shapes(_skeleton(graph, pinned), data_prop=True)
    tensors, inferred, names = graph.tensors(), set(pinned), dict[str, str]()
    for value in (*message.graph.value_info, *message.graph.output):
        tensor = tensors.get(value.name)
        kind = value.type.tensor_type
        if not isinstance(tensor, gs.Variable):
            continue
        if kind.elem_type:  # known even where the shape is not; a shape that is pinned later needs it
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
            tensor.shape = [
                names.setdefault(size, f"{value.name}.{axis}")
                if isinstance(size, str) and size.startswith(NUMBERED)
                else f"{value.name}.{axis}"
                if size is None
                else size
                for axis, size in enumerate(dims)
            ]
            inferred.add(value.name)
    return inferred


def _skeleton(graph: gs.Graph, pinned: Mapping[str, list[int | str]]) -> onnx.ModelProto:
    """The graph as a message for shape inference: large constants are inputs, so no weight is serialised.

    Annotations other than ``pinned`` are left out: an exporter's own may be wrong, and would win. Why not
    ``gs.export_onnx`` of a copy: the copy alone takes longer than all the rest (measured: 2.4 of 4.4 s for 8,000 nodes).
    """
    message = onnx.GraphProto(name="skeleton")
    tensors = graph.tensors()
    for node in graph.nodes:
        message.node.append(OnnxExporter.export_node(node))
    for tensor in tensors.values():
        if not isinstance(tensor, gs.Constant):
            continue
        if int(np.prod(tensor.shape)) > INFERRED_VALUES:
            message.input.append(value_info(tensor.name, tensor.dtype, list(tensor.shape)))
        else:
            message.initializer.append(OnnxExporter.export_tensor_proto(tensor))
    message.input.extend(value_info(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.inputs)
    message.output.extend(value_info(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.outputs)
    message.value_info.extend(value_info(name, tensors[name].dtype, shape) for name, shape in pinned.items())
    opsets = graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)]
    return onnx.helper.make_model(message, opset_imports=opsets)


def value_info(name: str, dtype: object, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    """A tensor's type and shape as a message; None for either leaves it open."""
    if dtype is None:
        return onnx.ValueInfoProto(name=name)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # type: ignore[call-overload]
    return onnx.helper.make_tensor_value_info(name, kind, shape)
