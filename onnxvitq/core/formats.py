"""What a tensor's codes are: a number format, how many scales a tensor has, and parameters that were fitted in such a format.

A ``NumberFormat`` says which integers there are, a ``Granularity`` which values of a tensor share a scale; a ``TensorFormat``
is one of each. Everything that depends on a count of bits (ranges, storage, how "int8" and "w4a8" are read and printed) is
here, so that another format is another object and no search through the code.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.tensors import FloatArray, IntArray

BYTE = 8  # bits
FEWEST_BITS, MOST_BITS = 2, 8  # that layers can be asked for, as in "w4a8"
LIMITS = (2, 16)  # bits of a number format; codes of more are no whole numbers in float32 arithmetic with a zero point
_NUMBER = re.compile(r"(u?)int(\d+)( asymmetric| symmetric)?")
LAYER_BITS = re.compile(f"w([{FEWEST_BITS}-{MOST_BITS}])a([{FEWEST_BITS}-{MOST_BITS}])")


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """Integers that stand for real values, real = scale * (code - zero point).

    Printed and parsed as "int8" (signed, symmetric) or "uint4" (unsigned, asymmetric); the two other combinations say so:
    "int8 asymmetric", "uint8 symmetric".

    Attributes:
        bits: width of a code, 2 to 16; storage may be wider.
        signed: codes on both sides of 0, or from 0 up.
        symmetric: the zero point is 0; a signed format gives up its lowest code, so that -x has a code when x has.

    Raises:
        ValueError: ``bits`` is out of range.
    """

    bits: int
    signed: bool
    symmetric: bool

    def __post_init__(self) -> None:
        fewest, most = LIMITS
        if not fewest <= self.bits <= most:
            raise ValueError(f"bits: expected {fewest} to {most}, got {self.bits}")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.symmetric)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.qmax - self.qmin + 1

    @property
    def storage(self) -> np.dtype[np.integer]:
        """The smallest numpy integer that holds the codes."""
        kind = "i" if self.signed else "u"
        return np.dtype(f"{kind}{1 if self.bits <= BYTE else 2}")

    def __str__(self) -> str:
        name = f"{'' if self.signed else 'u'}int{self.bits}"
        if self.symmetric == self.signed:
            return name
        return f"{name} {'symmetric' if self.symmetric else 'asymmetric'}"

    @classmethod
    def parse(cls, text: str) -> "NumberFormat":
        """The format that is printed so.

        Raises:
            ValueError: no format is, or its bits are out of range.
        """
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise ValueError(f"expected a number format such as int8 or uint4, got {text!r}")
        signed = not found[1]
        symmetric = signed if found[3] is None else found[3] == " symmetric"
        return cls(bits=int(found[2]), signed=signed, symmetric=symmetric)


INT8 = NumberFormat(bits=BYTE, signed=True, symmetric=True)
UINT8 = NumberFormat(bits=BYTE, signed=False, symmetric=False)
EIGHT_BITS = INT8.bits
PAIR_SAFE_BITS = 7  # at most, of weights of which no sum of two products saturates in 16 bits (``numerics.pairs``)


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: (2, 197, 192) has scale ()."""

    @property
    def rank(self) -> int | None:
        """Axes of the scale; None where it has those of the tensor."""
        return 0

    def spread(self, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales in a shape that broadcasts against a tensor of that shape."""
        del shape
        return scales

    def largest(self, magnitudes: FloatArray) -> FloatArray:
        """The largest of the values that share a scale, in the scales' shape."""
        largest: FloatArray = np.asarray(magnitudes.max())
        return largest


@dataclass(frozen=True, slots=True)
class PerChannel:
    """A scale for each position of one axis: a weight (192, 768) of axis 1 has scales (768,).

    Attributes:
        axis: the axis that keeps scales of its own, 0 or more.
    """

    axis: int

    @property
    def rank(self) -> int | None:
        """Axes of the scale; None where it has those of the tensor."""
        return 1

    def spread(self, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales in a shape that broadcasts against a tensor of that shape."""
        wide = [1] * len(shape)
        wide[self.axis] = -1
        return scales.reshape(wide)

    def largest(self, magnitudes: FloatArray) -> FloatArray:
        """The largest of the values that share a scale, in the scales' shape."""
        return np.asarray(magnitudes.max(axis=tuple(axis for axis in range(magnitudes.ndim) if axis != self.axis)))


@dataclass(frozen=True, slots=True)
class PerToken:
    """A scale for each row of the last axis: activations (2, 197, 192) have scales (2, 197, 1)."""

    @property
    def rank(self) -> int | None:
        """Axes of the scale; None where it has those of the tensor."""
        return None

    def spread(self, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales in a shape that broadcasts against a tensor of that shape."""
        del shape
        return scales

    def largest(self, magnitudes: FloatArray) -> FloatArray:
        """The largest of the values that share a scale, in the scales' shape."""
        return np.asarray(magnitudes.max(axis=-1, keepdims=True))


@dataclass(frozen=True, slots=True)
class PerBlock:
    """A scale for each run of values along one axis: a weight (192, 768), axis 0, size 32, has scales (6, 768).

    Where the size does not divide the axis, the last run is shorter: axis 0 of (200, 768) has scales (7, 768).

    Attributes:
        axis: along which values are cut into runs, 0 or more.
        size: values in a run, 1 or more.
    """

    axis: int
    size: int

    @property
    def rank(self) -> int | None:
        """Axes of the scale; None where it has those of the tensor."""
        return None

    def spread(self, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales in a shape that broadcasts against a tensor of that shape."""
        return np.repeat(scales, self.size, axis=self.axis).take(range(shape[self.axis]), axis=self.axis)

    def largest(self, magnitudes: FloatArray) -> FloatArray:
        """The largest of the values that share a scale, in the scales' shape."""
        starts = np.arange(0, magnitudes.shape[self.axis], self.size)
        return np.asarray(np.maximum.reduceat(magnitudes, starts, axis=self.axis))


Granularity = PerTensor | PerChannel | PerToken | PerBlock
_GRANULARITIES: Mapping[str, type[Granularity]] = {
    "tensor": PerTensor,
    "channel": PerChannel,
    "token": PerToken,
    "block": PerBlock,
}


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """What is asked of a tensor's quantizer. Hashable, goes to and comes from JSON, holds no array.

    Attributes:
        number: which codes there are.
        granularity: which values share a scale.
        saturation_free: of weights (I, O): codes of neighbours along I are limited so that no sum of two products saturates
            in 16 bits (``numerics.pairs``); codes of fewer than 8 bits never do, and are not.
    """

    number: NumberFormat
    granularity: Granularity = PerTensor()
    saturation_free: bool = False

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.number.bits

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return self.number.qmin

    @property
    def qmax(self) -> int:
        """Highest code."""
        return self.number.qmax

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is 0."""
        return self.number.symmetric

    @property
    def storage(self) -> np.dtype[np.integer]:
        """The smallest numpy integer that holds the codes."""
        return self.number.storage

    @property
    def axis(self) -> int | None:
        """The axis that keeps scales of its own; None where none does."""
        return self.granularity.axis if isinstance(self.granularity, PerChannel) else None

    @property
    def limits_pairs(self) -> bool:
        """Whether codes are limited beyond [qmin, qmax]."""
        return self.saturation_free and self.bits > PAIR_SAFE_BITS

    def with_bits(self, bits: int) -> "TensorFormat":
        """The same with another width."""
        return replace(self, number=replace(self.number, bits=bits))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        kind = next(name for name, known in _GRANULARITIES.items() if isinstance(self.granularity, known))
        return {
            "number": str(self.number),
            "granularity": {"per": kind, **asdict(self.granularity)},
            "saturation_free": self.saturation_free,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TensorFormat":
        """The record of such a dictionary.

        Raises:
            KeyError: an entry is missing, or the granularity is none.
            TypeError: an entry of the granularity has another name.
            ValueError: the number format is none.
        """
        entries = dict(values["granularity"])
        granularity = _GRANULARITIES[entries.pop("per")](**entries)
        number = NumberFormat.parse(values["number"])
        return cls(number, granularity, saturation_free=values["saturation_free"])


def weight_format(bits: int, *, saturation_free: bool = False) -> TensorFormat:
    """Of a linear layer's weight (I, O): symmetric, a scale an output."""
    number = NumberFormat(bits=bits, signed=True, symmetric=True)
    return TensorFormat(number, PerChannel(axis=1), saturation_free=saturation_free)


def activation_format(bits: int) -> TensorFormat:
    """Of activations: one scale and zero point a tensor, codes from 0."""
    return TensorFormat(NumberFormat(bits=bits, signed=False, symmetric=False))


class BitPair(NamedTuple):
    """Bits of a layer's weights and of its activations, printed as in "w4a8".

    Attributes:
        weights: bits of a weight.
        activations: bits of an activation.
    """

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"


def parse_bits(name: str, text: str) -> BitPair:
    """(bits a weight, bits an activation) of "wNaM".

    Raises:
        ConfigError: it is not of that form, or a width is not 2 to 8; ``name`` says where it stood.
    """
    found = LAYER_BITS.fullmatch(text)
    if found is None:
        raise ConfigError(name, f"expected wNaM with N and M {FEWEST_BITS} to {MOST_BITS}, such as w4a8, got {text!r}")
    return BitPair(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QParams:
    """What a fit returned: real = scale * (code - zero_point).

    Attributes:
        spec: the format that was asked for.
        scale: real units per integer step, float32, positive and finite; (), (C,) or the tensor's rank, as the granularity
            has it.
        zero_point: the code of 0.0, an integer within [qmin, qmax]; the scale's shape.

    Raises:
        ValueError: shapes differ or do not suit the granularity, a scale is not positive and finite, or a zero point is no
            code.
    """

    spec: TensorFormat
    scale: FloatArray
    zero_point: IntArray

    def __post_init__(self) -> None:
        scale = np.array(self.scale, np.float32)
        zero = np.asarray(self.zero_point)
        rank = self.spec.granularity.rank
        if (rank is not None and scale.ndim != rank) or zero.shape != scale.shape:
            asked = "equal shapes" if rank is None else f"rank {rank} and equal shapes"
            raise ValueError(f"expected {asked}, got scale {scale.shape}, zero point {zero.shape}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("scale: expected positive finite values")
        if zero.dtype.kind not in "iu" or (zero < self.spec.qmin).any() or (zero > self.spec.qmax).any():
            got = f"{zero.dtype} from {zero.min()} to {zero.max()}"
            raise ValueError(f"zero point: expected integers from {self.spec.qmin} to {self.spec.qmax}, got {got}")
        zero = zero.astype(self.spec.storage)  # after the check: the cast would wrap around
        scale.setflags(write=False)
        zero.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero)
