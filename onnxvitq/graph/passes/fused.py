"""Operators that onnxruntime's optimiser fused become standard operators again: some users bring optimised graphs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor

FUSED_DOMAIN = "com.microsoft"


def open_fused(graph: gs.Graph) -> int:
    """Gelu, BiasGelu, FastGelu, QuickGelu, SkipLayerNormalization, FusedMatMul of com.microsoft -> standard operators.

    1. FusedMatMul: the ranks of transposed operands are known; batches are not transposed.
    2. SkipLayerNormalization: its mean and inverse deviation are not read.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.domain != FUSED_DOMAIN or node.op not in OPENED:
            continue
        results = OPENED[node.op](edit, node)
        if results is None:
            continue
        outputs = list(node.outputs)
        node.outputs.clear()
        for index, result in results.items():
            if index < len(outputs) and outputs[index].name:
                edit.redirect(outputs[index], result)
        count += 1
    return count


Results = Mapping[int, gs.Tensor]  # output index -> the tensor that takes its place


def _gelu(edit: Editor, node: gs.Node) -> Results:
    """X (1 + erf(x / sqrt 2)) / 2, of x plus a bias where there is one."""
    x = _biased(edit, node)
    scaled = edit.node("Div", f"{node.name}_scaled", [x, _scalar(edit, node, "root", 2**0.5)])
    erf = edit.node("Erf", f"{node.name}_erf", [scaled])
    shifted = edit.node("Add", f"{node.name}_shifted", [erf, _scalar(edit, node, "one", 1.0)])
    product = edit.node("Mul", f"{node.name}_product", [x, shifted])
    return {0: edit.node("Mul", f"{node.name}_gelu", [product, _scalar(edit, node, "half", 0.5)])}


def _fast_gelu(edit: Editor, node: gs.Node) -> Results:
    """X (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    x = _biased(edit, node)
    cube = edit.node("Pow", f"{node.name}_cube", [x, _scalar(edit, node, "three", 3.0)])
    small = edit.node("Mul", f"{node.name}_small", [cube, _scalar(edit, node, "c", 0.044715)])
    inner = edit.node("Add", f"{node.name}_inner", [x, small])
    scaled = edit.node("Mul", f"{node.name}_scaled", [inner, _scalar(edit, node, "root", (2 / np.pi) ** 0.5)])
    tanh = edit.node("Tanh", f"{node.name}_tanh", [scaled])
    shifted = edit.node("Add", f"{node.name}_shifted", [tanh, _scalar(edit, node, "one", 1.0)])
    product = edit.node("Mul", f"{node.name}_product", [x, shifted])
    return {0: edit.node("Mul", f"{node.name}_gelu", [product, _scalar(edit, node, "half", 0.5)])}


def _quick_gelu(edit: Editor, node: gs.Node) -> Results:
    """X sigmoid(alpha x)."""
    x = node.inputs[0]
    alpha = _scalar(edit, node, "alpha", node.attrs.get("alpha", 1.702))
    scaled = edit.node("Mul", f"{node.name}_scaled", [x, alpha])
    gate = edit.node("Sigmoid", f"{node.name}_gate", [scaled])
    return {0: edit.node("Mul", f"{node.name}_gelu", [x, gate])}


def _skip_layer_norm(edit: Editor, node: gs.Node) -> Results | None:
    """LayerNormalization(x + skip + bias); the sum is the fourth output."""
    if any(len(node.outputs) > index and node.outputs[index].outputs for index in (1, 2)):
        return None  # rule 2
    x, skip, gamma, beta, bias = _padded(node.inputs, 5)
    total = edit.node("Add", f"{node.name}_sum", [x, skip])
    if bias is not None:
        total = edit.node("Add", f"{node.name}_biased", [total, bias])
    inputs = [total, gamma] if beta is None else [total, gamma, beta]
    epsilon = node.attrs.get("epsilon", 1e-12)
    return {0: edit.node("LayerNormalization", f"{node.name}_norm", inputs, axis=-1, epsilon=epsilon), 3: total}


def _fused_matmul(edit: Editor, node: gs.Node) -> Results | None:
    """Alpha op(x) op(y), where op may swap the last two axes."""
    operands = list(node.inputs)
    for index, flag in enumerate(("transA", "transB")):
        if node.attrs.get(flag, 0):
            shape = operands[index].shape
            if shape is None or len(shape) < 2:
                return None  # rule 1
            perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            operands[index] = edit.node("Transpose", f"{node.name}_{flag}", [operands[index]], perm=perm)
    product = edit.node("MatMul", f"{node.name}_product", operands)
    alpha = node.attrs.get("alpha", 1.0)
    if alpha == 1:
        return {0: product}
    return {0: edit.node("Mul", f"{node.name}_scaled", [product, _scalar(edit, node, "alpha", alpha)])}


def _biased(edit: Editor, node: gs.Node) -> gs.Tensor:
    x, bias = _padded(node.inputs, 2)
    return x if bias is None else edit.node("Add", f"{node.name}_biased", [x, bias])


def _padded(tensors: Sequence[gs.Tensor], count: int) -> list[gs.Tensor]:
    """The tensors, None for those that are absent, with as many None behind them as make ``count``."""
    given = [tensor if tensor.name else None for tensor in tensors]
    return [*given, *[None] * (count - len(given))]


def _scalar(edit: Editor, node: gs.Node, name: str, value: float) -> gs.Constant:
    return edit.constant(f"{node.name}_{name}", np.float32(value))


OPENED: dict[str, Callable[[Editor, gs.Node], Results | None]] = {
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    "FusedMatMul": _fused_matmul,
}
