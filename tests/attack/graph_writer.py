"""Writes the nodes of a small graph in the form that an opset has; weights follow from a seed and their name alone."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class GraphWriter:
    """A graph as it grows.

    Args:
        opset: of the default domain.
        dtype: of weights and hidden tensors.
        seed: of the weights.
    """

    def __init__(self, opset: int, dtype: str, seed: int) -> None:
        self.opset, self.dtype, self.seed = opset, np.dtype(dtype), seed
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.scaled: dict[str, Any] = {}  # end of a weight's name -> what it is multiplied with
        self.domains: set[str] = set()

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node: the name of its output, or a list of names where there are several."""
        number = len(self.nodes)
        names = [f"{kind.lower()}{number}"] if outputs == 1 else [f"{kind.lower()}{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"{kind}_{number}", domain=domain, **attributes))
        self.domains.add(domain)
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A stored array that is no weight; equal ones are stored once."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        name = f"c{zlib.crc32(array.tobytes() + repr((array.shape, array.dtype.str)).encode()):08x}"
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        """A stored vector of int64."""
        return self.constant(values, np.int64)

    def values(self, name: str, *shape: int, size: float | None = None, about: float = 0.0) -> np.ndarray:
        """What a weight of this name is: normal, of size 1 / sqrt(I) for (I, O), multiplied by ``scaled``."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        size = 1 / np.sqrt(shape[0]) if size is None else size
        factor: Any = next((value for ending, value in self.scaled.items() if name.endswith(ending)), 1.0)
        if np.ndim(factor) and np.shape(factor)[-1] not in {1, shape[-1]}:
            factor = factor[..., : shape[-1]]  # of grouped heads there are fewer
        return ((about + size * rng.normal(size=shape)) * factor).astype(self.dtype)

    def weight(self, name: str, values: np.ndarray) -> str:
        """Store a weight under its name."""
        self.constants[name] = values
        return name

    def reduce(self, kind: str, x: str, axes: Sequence[int], *, keepdims: int = 1) -> str:
        """ReduceMean, ReduceSum or ReduceMax: axes became an input with opset 18, of the sum with 13."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return str(self.op(kind, x, self.ints(*axes), keepdims=keepdims))
        return str(self.op(kind, x, axes=list(axes), keepdims=keepdims))

    def moved(self, kind: str, x: str, axis: int) -> str:
        """Squeeze or Unsqueeze: axes became an input with opset 13."""
        if self.opset >= 13:
            return str(self.op(kind, x, self.ints(axis)))
        return str(self.op(kind, x, axes=[axis]))

    def split(self, x: str, parts: int, size: int, axis: int = -1) -> list[str]:
        """Equal parts: sizes became an input with opset 13."""
        sizes = [size // parts] * parts
        if self.opset >= 13:
            return list(self.op("Split", x, self.ints(*sizes), outputs=parts, axis=axis))
        return list(self.op("Split", x, outputs=parts, axis=axis, split=sizes))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to a stored shape; 0 keeps a size, one may be -1."""
        return str(self.op("Reshape", x, self.ints(*shape)))

    def transpose(self, x: str, *perm: int) -> str:
        """Transpose."""
        return str(self.op("Transpose", x, perm=list(perm)))

    def add_input(self, name: str, shape: Sequence[int | str], kind: int | None = None) -> str:
        """A graph input of the graph's dtype, or of another kind."""
        element = ELEMENT[self.dtype.name] if kind is None else kind
        self.inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def add_output(self, x: str, name: str, kind: int | None = None) -> None:
        """A graph output of unknown shape under a name of its own."""
        self.nodes.append(helper.make_node("Identity", [x], [name], f"as_{name}"))
        element = ELEMENT[self.dtype.name] if kind is None else kind
        self.outputs.append(helper.make_tensor_value_info(name, element, None))

    def add_sequence(self, names: Sequence[str], name: str) -> None:
        """A graph output that is a sequence of tensors."""
        self.nodes.append(helper.make_node("SequenceConstruct", list(names), [name], f"as_{name}"))
        self.outputs.append(helper.make_tensor_sequence_value_info(name, ELEMENT[self.dtype.name], None))

    def model(self) -> onnx.ModelProto:
        """The finished model; its outputs have no shapes yet."""
        stored = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "attack", self.inputs, self.outputs, stored)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(self.domains - {""})]
        ir = 10 if self.opset >= 21 else 8 if self.opset >= 13 else 6
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir)
