"""ONNX operators as torch functions: what the blocks of a canonical graph consist of, and the shape arithmetic around them.

Each function takes the node's attributes and its inputs (None where an optional one is absent) and returns one tensor, or a
tuple where the operator has several outputs. An operator that is not in the table is refused by name before anything runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Sequence[Any]], Any]

TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    11: torch.float64,
}
NUMPY_TYPES = {np.dtype(str(dtype).removeprefix("torch.")): dtype for dtype in TYPES.values()}


def _sizes(tensor: Tensor) -> list[int]:
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _axes(attributes: Attributes, inputs: Sequence[Any]) -> list[int] | None:
    """Axes, an input since opset 13 or 18 and an attribute before."""
    if len(inputs) > 1 and inputs[1] is not None:
        return _sizes(inputs[1])
    axes = attributes.get("axes")
    return None if axes is None else [int(axis) for axis in axes]


def _reshape(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, shape = inputs[0], _sizes(inputs[1])
    if not attributes.get("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return torch.reshape(x, shape)


def _transpose(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    order = attributes.get("perm") or list(reversed(range(inputs[0].dim())))
    return inputs[0].permute([int(axis) for axis in order])


def _flatten(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1) % (inputs[0].dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _slice(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x = inputs[0]
    if len(inputs) > 1:
        starts, stops = _sizes(inputs[1]), _sizes(inputs[2])
        axes = _sizes(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
        steps = _sizes(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    else:
        starts, stops = list(attributes["starts"]), list(attributes["ends"])
        axes, steps = list(attributes.get("axes") or range(len(starts))), [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        chosen = range(x.shape[axis])[start:stop:step]
        if step == 1:
            x = x.narrow(axis, chosen.start, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def _split(attributes: Attributes, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = _sizes(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
    if sizes is None:
        sizes = -(-x.shape[axis] // int(attributes["num_outputs"]))
    return tuple(torch.split(x, sizes if isinstance(sizes, int) else [int(size) for size in sizes], dim=axis))


def _gather(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, index = inputs
    axis = attributes.get("axis", 0) % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
    chosen = x.index_select(axis, index.reshape(-1))
    return torch.reshape(chosen, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _squeeze(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    axes = _axes(attributes, inputs)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, axes = inputs[0], _axes(attributes, inputs) or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    del attributes
    shape = np.broadcast_shapes(tuple(inputs[0].shape), tuple(_sizes(inputs[1])))
    return inputs[0].expand(shape)


def _shape(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    sizes = list(inputs[0].shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))], dtype=torch.int64)


def _constant_of_shape(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    value = attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value.values).reshape(-1)
    return torch.full(_sizes(inputs[0]), fill[0].item(), dtype=NUMPY_TYPES[fill.dtype])


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
        axes = _axes(attributes, inputs)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return inputs[0]
        keep = bool(attributes.get("keepdims", 1))
        return function(inputs[0], axes or list(range(inputs[0].dim())), keep)

    return apply


def _layer_normalization(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, gamma = inputs[0], inputs[1]
    axis = attributes.get("axis", -1) % x.dim()
    beta = inputs[2] if len(inputs) > 2 else None
    shape = x.shape[axis:]
    beta = None if beta is None else beta.expand(shape)
    return functional.layer_norm(x, shape, gamma.expand(shape), beta, attributes.get("epsilon", 1e-5))


def _rms_normalization(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", -1)
    axes = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + attributes.get("epsilon", 1e-5)) * inputs[1]


def _gemm(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    a, b = inputs[0], inputs[1]
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    result = attributes.get("alpha", 1.0) * (a @ b)
    return result + attributes.get("beta", 1.0) * inputs[2] if len(inputs) > 2 and inputs[2] is not None else result


def _clip(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    low = inputs[1] if len(inputs) > 1 else attributes.get("min")
    high = inputs[2] if len(inputs) > 2 else attributes.get("max")
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _div(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    del attributes
    a, b = inputs
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _gelu(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    approximate = attributes.get("approximate", "none")
    return functional.gelu(
        inputs[0], approximate=approximate.decode() if isinstance(approximate, bytes) else approximate
    )


def _cast(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    wanted = attributes["to"]
    dtype = TYPES[wanted] if isinstance(wanted, int) else NUMPY_TYPES[np.dtype(wanted)]
    return inputs[0].to(dtype)


def _of(function: Callable[..., Any]) -> Operator:
    """An operator without attributes."""
    return lambda _attributes, inputs: function(*inputs)


OPERATORS: dict[str, Operator] = {
    "Abs": _of(torch.abs),
    "Add": _of(torch.add),
    "And": _of(torch.logical_and),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda attributes, inputs: torch.cat(list(inputs), dim=attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Cos": _of(torch.cos),
    "Div": _div,
    "Equal": _of(torch.eq),
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _of(torch.gt),
    "HardSigmoid": lambda attributes, inputs: torch.clamp(
        attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5), 0, 1
    ),
    "Identity": lambda _attributes, inputs: inputs[0],
    "IsNaN": _of(torch.isnan),
    "LayerNormalization": _layer_normalization,
    "Less": _of(torch.lt),
    "Log": _of(torch.log),
    "MatMul": _of(torch.matmul),
    "Max": _of(torch.maximum),
    "Min": _of(torch.minimum),
    "Mod": _of(torch.remainder),
    "Mul": _of(torch.mul),
    "Neg": _of(torch.neg),
    "Not": _of(torch.logical_not),
    "Or": _of(torch.logical_or),
    "Pow": _of(torch.pow),
    "RMSNormalization": _rms_normalization,
    "Range": _of(lambda start, stop, step: torch.arange(start.item(), stop.item(), step.item())),
    "Reciprocal": _of(torch.reciprocal),
    "ReduceMax": _reduce(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "Relu": _of(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _of(torch.sigmoid),
    "Sin": _of(torch.sin),
    "Slice": _slice,
    "Softmax": lambda attributes, inputs: torch.softmax(inputs[0], dim=attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": _of(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of(torch.sub),
    "Tanh": _of(torch.tanh),
    "Tile": _of(lambda x, repeats: x.repeat(_sizes(repeats))),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _of(torch.where),
}
