"""Weights of fewer than 8 bits that take that many bits in the file, in standard operators, and become int8 at load.

A code is cut into fields of 4, 2 and 1 bits (6 = 4 + 2), and each field is packed 2, 4 or 8 to a byte. The graph puts them
together again. It reads constants only, so onnxruntime computes it once, when the session loads, and before it looks for
quantized layers: what it sees then is the int8 weight of an 8-bit model, and the kernel is the same.

* Weights of one width and one number of outputs are unpacked together, row under row, and split at the end: few nodes.
* A byte holds values that lie a whole part of the rows apart, not neighbours: each plane of a field is then one shift of the
  whole blob, and a Concat along the rows puts the planes together. Shifts of interleaved values would broadcast over an axis
  of 2 to 8 elements (measured: four times the load time).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxvitq.core.tensors import IntArray
from onnxvitq.graph.edit import Editor

PACKED = "onnxvitq_packed"  # how the names of what unpacks begin; the audit looks for what is left of it
FIELDS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}  # widths whose values fill a byte
BITWISE_OPSET = 18  # BitwiseAnd and BitwiseOr
SMALL_ARITHMETIC_OPSET = 14  # Add and Sub of 8-bit integers
NODE_BYTES = 160  # in the file, with the names
LARGEST_GROUP = 2**26  # weights unpacked together: bounds the memory that loading takes for a moment


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    tensor: gs.Variable
    codes: IntArray


class Packer:
    """Collects the weights of one graph, and writes them packed; remembers the small constants that all of them share."""

    def __init__(self, edit: Editor, opset: int) -> None:
        self._edit, self._opset = edit, opset
        self._shared: dict[tuple[str, int], gs.Constant] = {}
        self._weights: dict[tuple[int, int], list[_Weight]] = {}

    @staticmethod
    def packs(bits: int) -> bool:
        """Whether weights of that width take fewer bits than a byte in the file."""
        return bits in FIELDS

    def int8(self, name: str, codes: IntArray, bits: int) -> gs.Tensor:
        """A tensor of the codes (I, O) int8; one of fewer than 8 bits has no values before ``write``.

        Args:
            name: of the tensor.
            codes: within -2^(bits - 1) and 2^(bits - 1) - 1.
            bits: 2 to 8.
        """
        if not self.packs(bits):
            return self._edit.constant(name, codes)
        tensor = gs.Variable(self._edit.unique(name), dtype=np.int8, shape=codes.shape)
        self._weights.setdefault((bits, codes.shape[1]), []).append(_Weight(tensor, codes))
        return tensor

    def write(self) -> None:
        """Give every tensor its values: packed where that takes fewer bytes, nodes included, than int8."""
        for (bits, outputs), weights in self._weights.items():
            for number, group in enumerate(_groups(weights)):
                if _pays(sum(weight.codes.size for weight in group), bits):
                    self._group(f"{PACKED}{bits}x{outputs}_{number}", group, bits)
                else:
                    for weight in group:
                        weight.tensor.to_constant(weight.codes)
        self._weights.clear()

    def _group(self, name: str, weights: Sequence[_Weight], bits: int) -> None:
        offset, rows = 1 << (bits - 1), [len(weight.codes) for weight in weights]
        stacked = np.concatenate([weight.codes for weight in weights])
        values = (stacked.astype(np.int16) + offset).astype(np.uint8)
        together, low = None, 0
        for width in FIELDS[bits]:
            blob = pack(values, width, low, multiple(bits))
            field = self._field(f"{name}_{width}bit", blob, (width, low))
            together = field if together is None else self._joined(f"{name}_{low}", together, field)
            low += width
        assert together is not None  # every entry of FIELDS has a field
        if len(values) % multiple(bits):
            ends = [self._constant("rows", value, np.int64) for value in (0, len(values))]
            together = self._edit.node("Slice", f"{name}_rows", [together, *ends], dtype=np.uint8)
        signed = self._signed(f"{name}_codes", together, offset)
        sizes = self._edit.constant(f"{name}_sizes", np.array(rows, np.int64))
        outputs = [weight.tensor for weight in weights]
        self._edit.graph.nodes.append(
            gs.Node("Split", self._edit.unique(f"{name}_split"), {"axis": 0}, [signed, sizes], outputs)
        )

    def _field(self, name: str, blob: IntArray, place: tuple[int, int]) -> gs.Tensor:
        """(rows / n, O) bytes of n values -> (rows, O), each value where it belongs in the code: width bits from bit low up."""
        width, low = place
        packed = self._edit.constant(name, blob)
        shift = self._masked_later if self._opset >= BITWISE_OPSET else self._shifted_alone
        planes = [shift(f"{name}{plane}", packed, plane * width, place) for plane in range(8 // width)]
        rows = self._edit.node("Concat", f"{name}s", planes, dtype=np.uint8, axis=0)
        if self._opset < BITWISE_OPSET:
            return rows
        mask = self._constant("mask", ((1 << width) - 1) << low, np.uint8)
        return self._edit.node("BitwiseAnd", f"{name}s_masked", [rows, mask], dtype=np.uint8)

    def _masked_later(self, name: str, packed: gs.Tensor, start: int, place: tuple[int, int]) -> gs.Tensor:
        """The plane that begins at bit ``start``, moved to its place; other planes' bits are still beside it."""
        return self._shift(name, packed, place[1] - start)

    def _shifted_alone(self, name: str, packed: gs.Tensor, start: int, place: tuple[int, int]) -> gs.Tensor:
        """The same without other planes' bits: shifted out at both ends, for opsets without BitwiseAnd."""
        width, low = place
        top = self._shift(f"{name}_top", packed, 8 - width - start)
        return self._shift(f"{name}_low", self._shift(f"{name}_alone", top, width - 8), low)

    def _shift(self, name: str, packed: gs.Tensor, by: int) -> gs.Tensor:
        """Towards the high bits where ``by`` is positive."""
        if by == 0:
            return packed
        amount = self._constant("shift", abs(by), np.uint8)
        direction = "LEFT" if by > 0 else "RIGHT"
        return self._edit.node("BitShift", name, [packed, amount], dtype=np.uint8, direction=direction)

    def _joined(self, name: str, left: gs.Tensor, right: gs.Tensor) -> gs.Tensor:
        if self._opset >= BITWISE_OPSET:
            return self._edit.node("BitwiseOr", f"{name}_or", [left, right], dtype=np.uint8)
        return self._add(f"{name}_plus", left, right)

    def _add(self, name: str, left: gs.Tensor, right: gs.Tensor) -> gs.Tensor:
        if self._opset >= SMALL_ARITHMETIC_OPSET:
            return self._edit.node("Add", name, [left, right], dtype=np.uint8)
        wide = [self._cast(f"{name}_{i}", tensor, np.int32) for i, tensor in enumerate((left, right))]
        return self._cast(name, self._edit.node("Add", f"{name}_sum", wide, dtype=np.int32), np.uint8)

    def _signed(self, name: str, codes: gs.Tensor, offset: int) -> gs.Tensor:
        """int8 codes about zero."""
        if self._opset >= SMALL_ARITHMETIC_OPSET:
            operands = [self._cast(f"{name}_plus_offset", codes, np.int8), self._constant("offset", offset, np.int8)]
            return self._edit.node("Sub", name, operands, dtype=np.int8)
        operands = [self._cast(f"{name}_plus_offset", codes, np.int32), self._constant("offset", offset, np.int32)]
        return self._cast(name, self._edit.node("Sub", f"{name}_wide", operands, dtype=np.int32), np.int8)

    def _cast(self, name: str, tensor: gs.Tensor, to: "type[np.integer]") -> gs.Tensor:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
        return self._edit.node("Cast", name, [tensor], dtype=to, to=kind)

    def _constant(self, kind: str, value: int, dtype: "Callable[[int], np.integer]") -> gs.Constant:
        if (kind, value) not in self._shared:
            values = np.array([value], np.int64) if kind == "rows" else np.asarray(dtype(value))
            self._shared[kind, value] = self._edit.constant(f"{PACKED}_{kind}_{value}", values)
        return self._shared[kind, value]


def pack(values: IntArray, width: int, low: int, rows: int) -> IntArray:
    """Bits low .. low + width - 1 of uint8 values (I, O), 8 / width values to a byte: (I' width / 8, O) uint8.

    I' is I made a multiple of ``rows`` by zeros. Byte row i holds rows i, i + I' width / 8, i + 2 I' width / 8, ... from its
    low bits up.
    """
    per_byte = 8 // width
    field = (values >> low) & ((1 << width) - 1)
    field = np.pad(field, ((0, -len(field) % rows), (0, 0)))
    planes = field.reshape(per_byte, len(field) // per_byte, -1)
    shifts = (np.arange(per_byte) * width).astype(np.uint8)[:, None, None]
    return np.bitwise_or.reduce(planes << shifts, axis=0).astype(np.uint8)


def multiple(bits: int) -> int:
    """What the rows of a packed weight are made a multiple of: the values of its narrowest field in a byte."""
    return 8 // min(FIELDS[bits])


def _groups(weights: Sequence[_Weight]) -> Iterator[list[_Weight]]:
    """Parts of a list with ``LARGEST_GROUP`` weights at most, or one tensor."""
    group: list[_Weight] = []
    for weight in weights:
        if group and sum(member.codes.size for member in group) + weight.codes.size > LARGEST_GROUP:
            yield group
            group = []
        group.append(weight)
    yield group


def _pays(count: int, bits: int) -> bool:
    """Whether ``count`` weights take fewer bytes packed, with the nodes that unpack them, than as int8."""
    nodes = sum(8 // width + 3 for width in FIELDS[bits]) + 3
    return count * (8 - bits) / 8 > nodes * NODE_BYTES
