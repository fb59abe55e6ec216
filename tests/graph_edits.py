"""Random edits of one node of a valid graph: what a fuzz test changes, and which edited graphs are worth judging."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from onnx import helper, numpy_helper

Feed = Mapping[str, np.ndarray]

BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
UNARY = ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Abs", "Neg", "Exp", "Gelu", "HardSwish", "HardSigmoid", "Softplus")
NORMALISED = ("Softmax", "LogSoftmax", "Hardmax", "Sigmoid", "Relu")
REDUCED = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare")
POOLED = ("MaxPool", "AveragePool")
FAMILIES = (BINARY, UNARY, NORMALISED, REDUCED, POOLED)
ORDERED = ("Sub", "Div", "MatMul", "Pow", "Add", "Mul", "Concat", "Max")
WITH_AXIS = ("Softmax", "LogSoftmax", "LayerNormalization", "Gather", "Concat", "Split", "Flatten", "GatherElements")
SCALARS = (0.0, 0.5, 1.0, 2.0, -1.0, 3.0)
FACTORS = (0.5, 1.25, 2.0, -1.0)
IMAGE_SIDE, FREE_LENGTH = 64, 5  # where the graph leaves a size of the input open
OTHER_BATCH = 3
VARIES = 1e-5  # of the largest output, between two inputs; less is a constant
DRAWS = 20  # of one kind, before another


@dataclass
class Draft:
    """A graph that is being edited, with what an edit wants to know about it."""

    proto: onnx.ModelProto
    rng: np.random.Generator
    seen: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)  # of the graph as it was

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        found = {one.name: numpy_helper.to_array(one) for one in self.proto.graph.initializer}
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        return found

    @cached_property
    def position(self) -> dict[str, int]:
        """Index of the node that computes a tensor."""
        return {name: index for index, node in enumerate(self.proto.graph.node) for name in node.output}

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def replace(self, node: onnx.NodeProto, index: int, value: np.ndarray) -> str:
        """Give one node a constant of its own; "" where that is the one it has."""
        before = self.constants.get(node.input[index])
        if before is not None and before.shape == value.shape and (before == value).all():
            return ""
        name = f"{node.input[index] or node.output[0]}_edited"
        self.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        node.input[index] = name
        return f"input {index} {_short(before)} -> {_short(value)}"


def _short(value: np.ndarray | None) -> str:
    if value is None:
        return "(none)"
    return str(value.tolist()) if value.size <= 8 else f"{value.dtype}{list(value.shape)}"


Edit = Callable[[Draft, onnx.NodeProto], str]  # what was changed; "" where the edit does not apply


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else default


def _set(node: onnx.NodeProto, name: str, value: Any) -> str:
    old = _attribute(node, name)
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return f"{name} {old} -> {value}"


def swap_operator(draft: Draft, node: onnx.NodeProto) -> str:
    families = [family for family in FAMILIES if node.op_type in family]
    if not families or (node.op_type in BINARY and len(node.input) != 2):
        return ""
    family, old = draft.pick(families), node.op_type
    node.op_type = draft.pick([one for one in family if one != old])
    if family is UNARY or node.op_type in UNARY:
        del node.attribute[:]
    return f"{old} -> {node.op_type}"


def swap_operands(draft: Draft, node: onnx.NodeProto) -> str:
    if node.op_type not in ORDERED or len(node.input) < 2:
        return ""
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return "operands swapped"


def change_gemm(draft: Draft, node: onnx.NodeProto) -> str:
    if node.op_type != "Gemm":
        return ""
    name = draft.pick(("transA", "transB", "alpha", "beta"))
    if name.startswith("trans"):
        return _set(node, name, 1 - _attribute(node, name, 0))
    return _set(node, name, _attribute(node, name, 1.0) * draft.pick(FACTORS))


def change_axis(draft: Draft, node: onnx.NodeProto) -> str:
    if node.op_type in WITH_AXIS:
        old, rank = _attribute(node, "axis", -1), len(draft.seen.get(node.input[0], ((0,), None))[0]) or 1
        return _set(
            node, "axis", int(draft.pick([one for one in (-3, -2, -1, 0, 1, 2, 3) if (one - old) % rank] or [7]))
        )
    index = 1 if node.op_type in ("Squeeze", "Unsqueeze", *REDUCED) else 3 if node.op_type == "Slice" else 0
    if not index or len(node.input) <= index or node.input[index] not in draft.constants:
        return ""
    old = draft.constants[node.input[index]]
    return draft.replace(node, index, old + old.dtype.type(draft.pick((-1, 1))))


def change_perm(draft: Draft, node: onnx.NodeProto) -> str:
    perm = _attribute(node, "perm") if node.op_type == "Transpose" else None
    if perm is None:
        return ""
    shuffled = [int(axis) for axis in draft.rng.permutation(len(perm))]
    if draft.rng.random() < 0.5 and shuffled != list(perm):
        return _set(node, "perm", shuffled)
    first, second = (int(axis) for axis in draft.rng.choice(len(perm), 2, replace=False))
    changed = list(perm)
    changed[first], changed[second] = changed[second], changed[first]
    return _set(node, "perm", changed)


def change_number(draft: Draft, node: onnx.NodeProto) -> str:
    """Attributes that are a float or a flag."""
    names = {"epsilon": 1e-5, "keepdims": 1, "allowzero": 0, "mode": b""}
    there = [one.name for one in node.attribute if one.name in ("epsilon", "keepdims", "alpha", "approximate")]
    if node.op_type == "Reshape":
        there.append("allowzero")
    if node.op_type == "Gemm" or not there:
        return ""
    name = draft.pick(there)
    if name == "approximate":
        return _set(node, name, "none" if _attribute(node, name) == b"tanh" else "tanh")
    old = _attribute(node, name, names.get(name, 1.0))
    return _set(node, name, 1 - old if isinstance(old, int) else old * draft.pick((0.5, 3.0, 1e3)))


def change_window(draft: Draft, node: onnx.NodeProto) -> str:
    if node.op_type not in ("Conv", *POOLED):
        return ""
    name = draft.pick(("strides", "pads", "dilations", "group", "auto_pad"))
    if name == "group":
        return _set(node, name, draft.pick([one for one in (1, 2, 4) if one != _attribute(node, name, 1)]))
    if name == "auto_pad":
        return _set(node, name, draft.pick(("SAME_UPPER", "SAME_LOWER", "VALID")))
    rank = len(_attribute(node, "kernel_shape", (1, 1)))
    old = list(_attribute(node, name, [0] * 2 * rank if name == "pads" else [1] * rank))
    place = int(draft.rng.integers(len(old)))
    old[place] = max(0 if name == "pads" else 1, old[place] + draft.pick((-1, 1)))
    if draft.rng.random() < 0.5:
        old = [old[place]] * len(old)
    return "" if old == _attribute(node, name) else _set(node, name, old)


def change_target(draft: Draft, node: onnx.NodeProto) -> str:
    """A Reshape's constant target: permuted, split elsewhere, or with another size left open."""
    target = draft.constants.get(node.input[1]) if node.op_type == "Reshape" else None
    if target is None or target.size < 2:
        return ""
    changed = target.copy()
    first, second = draft.rng.choice(target.size, 2, replace=False)
    how = draft.pick(("permute", "swap", "move", "open"))
    if how == "permute":
        changed = draft.rng.permutation(target)
    elif how == "swap":
        changed[first], changed[second] = target[second], target[first]
    elif how == "move" and target[first] > 0 and target[first] % 2 == 0 and target[second] > 0:
        changed[first], changed[second] = target[first] // 2, target[second] * 2
    else:
        changed[first] = draft.pick((-1, 0))
    return draft.replace(node, 1, changed)


def change_integers(draft: Draft, node: onnx.NodeProto) -> str:
    """Slice bounds and steps, Gather indices, Split sizes, moved by one; ``to`` of shape arithmetic likewise."""
    inputs = {"Slice": (1, 2, 4), "Gather": (1,), "Split": (1,), "Expand": (1,), "Pad": (1,), "Tile": (1,)}
    there = [
        index
        for index in inputs.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in draft.constants
    ]
    if not there:
        return ""
    index = draft.pick(there)
    changed = np.array(draft.constants[node.input[index]])
    if node.op_type == "Gather" and changed.ndim == 0 and draft.rng.random() < 0.3:
        return draft.replace(node, index, changed.reshape(1))
    if not changed.size:
        return ""
    place = int(draft.rng.integers(changed.size))
    moved = int(changed.reshape(-1)[place]) + draft.pick((-1, 1))
    changed.reshape(-1)[place] = np.clip(moved, *_limits(changed.dtype))
    if node.op_type == "Split" and changed.size > 1:
        changed.reshape(-1)[-1] += draft.constants[node.input[index]].sum() - changed.sum()
    return draft.replace(node, index, changed)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def change_scalar(draft: Draft, node: onnx.NodeProto) -> str:
    """A constant of one value: 0.5, the square root of 2, 1 / sqrt(d), an epsilon."""
    there = [
        index
        for index, name in enumerate(node.input)
        if name in draft.constants and draft.constants[name].size == 1 and draft.constants[name].dtype == np.float32
    ]
    if not there:
        return ""
    index = draft.pick(there)
    old = draft.constants[node.input[index]]
    value = draft.pick(SCALARS) if draft.rng.random() < 0.4 else float(old.reshape(())) * draft.pick(FACTORS)
    return draft.replace(node, index, np.full(old.shape, value, np.float32))


def change_constant_shape(draft: Draft, node: onnx.NodeProto) -> str:
    """The constant operand of an elementwise operator: another shape that broadcasts, so other rows, columns or ranks."""
    there = [index for index, name in enumerate(node.input) if name in draft.constants]
    shape, _ = draft.seen.get(node.output[0], ((), None)) if node.output else ((), None)
    if (
        node.op_type not in BINARY
        or len(there) != 1
        or not shape
        or draft.constants[node.input[there[0]]].dtype != "f4"
    ):
        return ""
    rank = int(draft.rng.integers(len(shape) + 1))
    sizes = [size if draft.rng.random() < 0.5 else 1 for size in shape[len(shape) - rank :]]
    if draft.rng.random() < 0.2:
        sizes = [1, *sizes]
    value = draft.rng.normal(1.0, 0.3, sizes).astype(np.float32)
    return draft.replace(node, there[0], value)


def move_edge(draft: Draft, node: onnx.NodeProto) -> str:
    """An input becomes another tensor of the same shape and type that is computed before."""
    here = draft.position.get(node.output[0], 0) if node.output else 0
    moves: list[tuple[int, str]] = []
    for index, name in enumerate(node.input):
        kind = draft.seen.get(name)
        if kind is None or name in draft.constants or kind[1] != np.float32:
            continue
        moves.extend(
            (index, other)
            for other, theirs in draft.seen.items()
            if theirs == kind and other not in (name, *node.output) and draft.position.get(other, -1) < here
        )
    if not moves:
        return ""
    index, other = draft.pick(moves)
    old, node.input[index] = node.input[index], other
    return f"input {index} {old} -> {other}"


def add_output(draft: Draft, node: onnx.NodeProto) -> str:
    """The node's result is also a graph output."""
    name = node.output[0] if node.output else ""
    known = {one.name for one in draft.proto.graph.output}
    if name in known or name in draft.constants or name not in draft.seen or draft.seen[name][1] != np.float32:
        return ""
    draft.proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return f"{name} also a graph output"


EDITS: dict[str, Edit] = {
    "operator swapped": swap_operator,
    "operands swapped": swap_operands,
    "Gemm attribute": change_gemm,
    "axis": change_axis,
    "perm": change_perm,
    "attribute": change_number,
    "window": change_window,
    "Reshape target": change_target,
    "integers": change_integers,
    "scalar": change_scalar,
    "constant's shape": change_constant_shape,
    "edge moved": move_edge,
    "output added": add_output,
}


# ------------------------------------------------------------------------------------------------- running and drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A valid graph with one node changed, and what changed."""

    proto: onnx.ModelProto
    kind: str
    what: str
    dynamic: bool  # whether it also runs at another batch


def open_session(proto: onnx.ModelProto, *, optimised: bool = False) -> onnxruntime.InferenceSession:
    """Every node as it is written, or as onnxruntime runs a model by default."""
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_feeds(proto: onnx.ModelProto, count: int, batch: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Normal noise for every input; ``batch`` where the first size is open."""
    rng = np.random.default_rng(seed)
    shapes = {}
    for one in proto.graph.input:
        sizes = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        free = IMAGE_SIDE if len(sizes) == 4 else FREE_LENGTH
        shapes[one.name] = [size or (free if index else batch) for index, size in enumerate(sizes)]
    return [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


def has_free_batch(proto: onnx.ModelProto) -> bool:
    return any(
        not one.type.tensor_type.shape.dim[0].dim_value for one in proto.graph.input if one.type.tensor_type.shape.dim
    )


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Functions inlined, every constant an input tensor, nothing noted down that an edit could make wrong."""
    model: onnx.ModelProto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    taken = {one.name for one in model.graph.initializer}
    model = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = [one for one in model.graph.input if one.name not in taken]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]
    return model


def observe(proto: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every tensor that a node computes, in one run."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    known = {one.name for one in copy.graph.output}
    names = [name for node in copy.graph.node for name in node.output if name and name not in known]
    copy.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
    session = open_session(copy)
    values = session.run(None, random_feeds(copy, 1, 2, 0)[0])
    found = zip((one.name for one in session.get_outputs()), values, strict=True)
    return {name: (value.shape, value.dtype) for name, value in found if isinstance(value, np.ndarray)}


def draw(proto: onnx.ModelProto, seen: Mapping[str, Any], rng: np.random.Generator, kind: str = "") -> Edited | None:
    """One valid edit of a prepared graph, of a random kind unless one is given; None when many draws gave none."""
    kinds = [kind] if kind else [list(EDITS)[int(index)] for index in rng.permutation(len(EDITS))]
    for chosen in kinds:  # kinds that are seldom valid would hardly be drawn if each draw chose its own
        for _ in range(DRAWS):
            draft = Draft(onnx.ModelProto.FromString(proto.SerializeToString()), rng, dict(seen))
            what = _edit_any(draft, EDITS[chosen])
            if not what:
                break
            edited = accept(draft.proto, chosen, what)
            if edited is not None:
                return edited
    return None


def _edit_any(draft: Draft, edit: Edit) -> str:
    """Apply an edit to the first node of a random order that it applies to; the node and what changed."""
    for index in draft.rng.permutation(len(draft.proto.graph.node)):
        node = draft.proto.graph.node[int(index)]
        operator = node.op_type
        what = edit(draft, node)
        if what:
            return f"{operator} {node.name or node.output[0]}: {what}"
    return ""


def accept(proto: onnx.ModelProto, kind: str, what: str) -> Edited | None:
    """The edited graph, if the checker and onnxruntime take it and its outputs are finite and depend on the input."""
    try:
        session = open_session(proto)
        feeds = random_feeds(proto, 2, 1, 0)
        results = [session.run(None, feed) for feed in feeds]
        again = session.run(None, feeds[0])
    except Exception:  # noqa: BLE001 - onnxruntime's errors have no common type
        return None
    if not all(np.isfinite(value).all() for values in results for value in values if value.dtype == np.float32):
        return None
    if not any(_varies(one, two) for one, two in zip(*results, strict=True)) or not results[0][0].size:
        return None
    if not all(np.array_equal(one, two) for one, two in zip(results[0], again, strict=True)):
        return None  # random: nothing can be said of what is written
    _state_outputs(proto, results[0])
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception:  # noqa: BLE001 - nor do the checker's
        return None
    return Edited(proto=proto, kind=kind, what=what, dynamic=has_free_batch(proto) and _runs_at(session, proto))


def _varies(one: np.ndarray, two: np.ndarray) -> bool:
    if one.dtype != np.float32 or one.shape != two.shape or not one.size:
        return False
    return bool(np.abs(one - two).max() > VARIES * np.abs(one).max() > 0)


def _state_outputs(proto: onnx.ModelProto, values: Sequence[np.ndarray]) -> None:
    """Leave the sizes open of outputs that came out otherwise than stated."""
    for one, value in zip(proto.graph.output, values, strict=True):
        kind, dims = one.type.tensor_type, one.type.tensor_type.shape.dim
        if len(dims) != value.ndim or any(
            dim.dim_value not in (0, n) for dim, n in zip(dims, value.shape, strict=True)
        ):
            kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, [None] * value.ndim).tensor_type)


def _runs_at(session: onnxruntime.InferenceSession, proto: onnx.ModelProto) -> bool:
    try:
        values = session.run(None, random_feeds(proto, 1, OTHER_BATCH, 1)[0])
    except Exception:  # noqa: BLE001 - as in accept
        return False
    return all(np.isfinite(value).all() for value in values if value.dtype == np.float32)
