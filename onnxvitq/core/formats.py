"""Number formats of quantizers, and fitted parameters in them."""

from dataclasses import dataclass

import numpy as np

from onnxvitq.core.tensors import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """What is asked of a quantizer. Hashable, JSON-able, holds no array.

    ``bits`` is the number of levels (2 ** bits), never the storage width. ``axis`` is the ONNX axis that keeps a scale
    of its own; None is one scale for the tensor. Example: a weight (I, O) with axis 1 has scales (O,). ``saturation_free``,
    of weights (I, O): codes of neighbours along I are limited so that no product saturates (``numerics.pairs``); fewer than
    8 bits never do.
    """

    bits: int
    signed: bool
    symmetric: bool
    axis: int | None = None
    saturation_free: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits: expected 2 to 16, got {self.bits}")

    @property
    def qmin(self) -> int:
        """Lowest code. A symmetric signed format gives up its lowest code, so that -x is representable when x is."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.symmetric)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def limits_pairs(self) -> bool:
        """Whether codes are limited beyond [qmin, qmax]."""
        return self.saturation_free and self.bits > 7

    @property
    def storage(self) -> np.dtype[np.integer]:
        """The smallest numpy integer that holds the codes."""
        kind = "i" if self.signed else "u"
        return np.dtype(f"{kind}{1 if self.bits <= 8 else 2}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QParams:
    """What a fit returned: real = scale * (code - zero_point).

    Shapes: scale and zero_point are () or (C,), C the size of ``spec.axis``. scale is float32, positive and finite, in
    real units per integer step; zero_point is an integer within [qmin, qmax].
    """

    spec: QuantSpec
    scale: FloatArray
    zero_point: IntArray

    def __post_init__(self) -> None:
        scale = np.array(self.scale, np.float32)
        zero = np.asarray(self.zero_point)
        rank = 0 if self.spec.axis is None else 1
        if scale.ndim != rank or zero.shape != scale.shape:
            raise ValueError(f"expected rank {rank} and equal shapes, got scale {scale.shape}, zero point {zero.shape}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("scale: expected positive finite values")
        if zero.dtype.kind not in "iu" or (zero < self.spec.qmin).any() or (zero > self.spec.qmax).any():
            found = f"{zero.dtype} from {zero.min()} to {zero.max()}"
            raise ValueError(f"zero point: expected integers from {self.spec.qmin} to {self.spec.qmax}, got {found}")
        zero = zero.astype(self.spec.storage)  # after the check: the cast would wrap around
        scale.setflags(write=False)
        zero.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero)
