"""Questions about a model as a protobuf message, before it becomes a graph and after."""

from collections.abc import Iterator
from pathlib import Path

import onnx

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operator set; 0 where none is stated."""
    return max((entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS), default=0)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those in the bodies of If, Loop and Scan included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def all_constants(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """(name, value) of every initializer and of every Constant node's output."""
    yield from ((tensor.name, tensor) for tensor in proto.graph.initializer)
    for node in all_nodes(proto.graph):
        if node.op_type == "Constant":
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def external_files(proto: onnx.ModelProto, folder: Path) -> set[Path]:
    """Paths of the files that hold initializers of a model that lies in ``folder``."""
    return {
        folder / entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
