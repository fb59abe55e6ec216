"""What torch itself computes: linear layers and attention products of a module, counted at the operators it runs.

Nothing of onnxvitq's search is used. The module runs twice, on two images, under a mode that sees every operator. A value
that is the same both times does not depend on the image: exporters and the canonical form fold it to a constant. Walking
the operators backwards from the outputs tells which of them can be in an exported graph at all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operand positions of the products that torch's operators come down to.
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1), "dot": (0, 1)}
FUSED = ("_scaled_dot_product", "_fused_sdp")  # a whole attention in one operator
SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
# What comes out of these is a new activation, not scores or probabilities any more.
STOPS = frozenset({"native_layer_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "convolution"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One application of a weight: I inputs and O outputs, and the module that does it."""

    module: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an exported graph has to hold.

    linears: products with a matrix that does not depend on the image, 1x1 convolutions among them. patch_embeddings:
    convolutions whose kernel is their stride. attentions, products: softmax(Q K) V and the products in them.
    constant_linears: their input does not depend on the image, so they are folded, unless a batch of any size keeps them.
    other_products: of two activations, outside an attention. stacks: with a constant of more than two dimensions.
    convolutions: all others.
    """

    linears: tuple[Layer, ...]
    patch_embeddings: tuple[Layer, ...]
    attentions: int
    products: int
    constant_linears: tuple[Layer, ...]
    other_products: tuple[str, ...]
    stacks: tuple[str, ...]
    convolutions: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Expected":
        """The record of ``dataclasses.asdict``, read back from JSON."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        layers = {
            name: tuple(Layer(**layer) for layer in values[name])
            for name in ("linears", "patch_embeddings", "constant_linears")
        }
        return cls(**{**values, **lists, **layers})


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One operator that ran: where its values live, and copies of the operands of a product."""

    op: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    operands: tuple[torch.Tensor, ...]
    details: tuple[Any, ...]


class _Trace(TorchDispatchMode):
    """Records every operator; a value is known by its storage, so that views and writes in place need no care."""

    def __init__(self, where: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.calls: list[_Call] = []
        self._where = where
        self._alive: list[torch.Tensor] = []  # or a storage's address would be given out again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and keep what it read and wrote."""
        del types
        result = func(*args, **(kwargs or {}))
        reads, writes = _tensors((args, kwargs)), _tensors(result)
        self._alive += [*reads, *writes]
        if func._schema.is_mutable:
            writes = [*writes, *reads[:1]]
        name = func._schema.name.removeprefix("aten::")
        positions = (0, 1) if name == "convolution" else (0, 1, 2) if name.startswith(FUSED) else PRODUCTS.get(name, ())
        self.calls.append(
            _Call(
                op=name.rstrip("_") if name not in SOFTMAX else name,
                module=self._where[-1],
                reads=tuple(map(_storage, reads)),
                writes=tuple(map(_storage, writes)),
                operands=tuple(args[position].clone(memory_format=torch.preserve_format) for position in positions),
                details=tuple(args[3:9]) if name == "convolution" else (),
            )
        )
        return result


def count(module: nn.Module, images: tuple[torch.Tensor, torch.Tensor]) -> Expected:
    """Run ``module`` on two batches and count.

    Args:
        module: returns a tuple of tensors: the outputs that are exported.
        images: two different inputs of one shape, two images each.
    """
    _run(module, images[0])  # some compute a table once and keep it
    (calls, outputs), (again, _) = (_run(module, batch) for batch in images)
    if [call.op for call in calls] != [call.op for call in again]:
        raise RuntimeError("the module runs other operators on another image: it cannot be counted")
    live = _live(calls, outputs)
    moving = [
        [not torch.equal(a, b) for a, b in zip(one.operands, two.operands, strict=True)]
        for one, two in zip(calls, again, strict=True)
    ]
    stored = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    counter = _Counter(batch=len(images[0]), stored=stored)
    products: list[int] = []
    for index, call in enumerate(calls):
        if not live[index] or not call.operands:
            continue
        if call.op == "convolution":
            counter.convolution(call, moving[index])
        elif call.op.startswith(FUSED):
            counter.fused(moving[index])
        elif counter.product(call, moving[index]):
            products.append(index)
    attentions, inside = _attentions(calls, live, set(products))
    return counter.expected(attentions, len(inside), [calls[index].module for index in products if index not in inside])


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _run(module: nn.Module, images: torch.Tensor) -> tuple[list[_Call], set[int]]:
    where = [""]
    trace = _Trace(where)
    torch.manual_seed(0)
    with _named_modules(module, where), torch.no_grad(), trace:
        outputs = module(images)
    trace.calls.append(_Call("outputs", "", tuple(map(_storage, outputs)), (), (), ()))
    return trace.calls, {_storage(output) for output in outputs}


@contextmanager
def _named_modules(module: nn.Module, where: list[str]) -> Iterator[None]:
    """Keep the name of the module that is running at the end of ``where``."""
    hooks = []

    def leave(*_: object) -> None:
        where.pop()

    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda _, __, name=name: where.append(name)))
        hooks.append(part.register_forward_hook(leave))
    yield
    for hook in hooks:
        hook.remove()


def _live(calls: Sequence[_Call], outputs: set[int]) -> list[bool]:
    """Whether each operator's result reaches an output."""
    wanted, live = set(outputs), [False] * len(calls)
    for index in reversed(range(len(calls))):
        if wanted & set(calls[index].writes):
            live[index] = True
            wanted |= set(calls[index].reads)
    return live


def _attentions(calls: Sequence[_Call], live: Sequence[bool], products: set[int]) -> tuple[int, set[int]]:
    """Softmaxes between two products of activations, and these products.

    Each storage carries the products and softmaxes that its values come from, through everything but a norm, a
    convolution, a linear layer or another product.
    """
    origins: dict[int, frozenset[int]] = {}
    scores: dict[int, frozenset[int]] = {}
    softmaxes: set[int] = set()
    inside: set[int] = set()
    for index, call in enumerate(calls):
        found = frozenset[int]().union(*(origins.get(storage, frozenset()) for storage in call.reads))
        if index in products:
            used = {origin for origin in found if origin in scores}
            if used and live[index]:
                softmaxes |= used
                inside |= {index}.union(*(scores[origin] for origin in used))
            found = frozenset({index})
        elif call.op in SOFTMAX:
            scores[index] = frozenset(origin for origin in found if origin in products)
            found = frozenset({index}) if scores[index] else frozenset()
        elif call.op in STOPS or call.operands:
            found = frozenset()
        for storage in call.writes:
            origins[storage] = found | (origins.get(storage, frozenset()) if storage in call.reads else frozenset())
    return len(softmaxes), inside


class _Counter:
    """Sorts products and convolutions into the kinds of ``Expected``."""

    def __init__(self, batch: int, stored: set[int]) -> None:
        self._batch, self._stored = batch, stored
        self._linears: list[Layer] = []
        self._patches: list[Layer] = []
        self._constant: list[Layer] = []
        self._stacks: list[str] = []
        self._convolutions = 0
        self._fused = 0
        self._fused_products = 0

    def convolution(self, call: _Call, moving: Sequence[bool]) -> None:
        """A 1x1 kernel is a linear layer, a kernel as large as its stride a patch embedding."""
        weight = call.operands[1]
        stride, padding, dilation, transposed, _, groups = call.details
        kernel = list(weight.shape[2:])
        layer = Layer(module=call.module, inputs=math.prod(weight.shape[1:]), outputs=weight.shape[0])
        plain = groups == 1 and not transposed and not any(padding) and all(size == 1 for size in dilation)
        if not plain or not (all(size == 1 for size in kernel) or kernel == list(stride)):
            self._convolutions += moving[0]
        elif not moving[0]:
            self._constant.append(layer)
        else:
            (self._linears if all(size == 1 for size in kernel) else self._patches).append(layer)

    def fused(self, moving: Sequence[bool]) -> None:
        """Query, key and value of one operator; a product whose operands are both constant is folded."""
        scores = moving[0] or moving[1]
        self._fused += any(moving)
        self._fused_products += scores + any(moving)

    def product(self, call: _Call, moving: Sequence[bool]) -> bool:
        """Whether it multiplies two activations; anything else is put into its list."""
        left, right = call.operands
        stored = call.reads[PRODUCTS[call.op][0 if moving[1] else 1]] in self._stored
        if moving[0] and moving[1]:
            return True
        if moving[1] and not moving[0]:  # W x, the same as (x' W')'
            left, right = right.mT if right.ndim > 1 else right, left.mT if left.ndim > 1 else left
        if right.ndim > 2 and not stored and self._repeated(right):
            return any(moving)  # computed, and the same for each image: one side of an attention
        if right.ndim > 2 and right.shape[0] > 1 and not (right[0] == right).all():
            self._stacks += [call.module] * any(moving)
            return False
        width = right.shape[-2] if right.ndim > 1 else right.shape[0]
        layer = Layer(module=call.module, inputs=width, outputs=right.shape[-1] if right.ndim > 1 else 1)
        (self._linears if any(moving) else self._constant).append(layer)
        return False

    def _repeated(self, stack: torch.Tensor) -> bool:
        images = stack.reshape(self._batch, -1) if stack.shape[0] % self._batch == 0 else None
        return images is not None and torch.allclose(
            images[0], images, rtol=1e-4, atol=1e-6
        )  # a row's sum order may differ

    def expected(self, attentions: int, products: int, others: Sequence[str]) -> Expected:
        """Everything together."""
        return Expected(
            linears=tuple(self._linears),
            patch_embeddings=tuple(self._patches),
            attentions=attentions + self._fused,
            products=products + self._fused_products,
            constant_linears=tuple(self._constant),
            other_products=tuple(others),
            stacks=tuple(self._stacks),
            convolutions=self._convolutions,
        )
