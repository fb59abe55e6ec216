"""Ranges measured at run time, bit-equal to onnxruntime's DynamicQuantizeLinear (a test compares them).

One range a tensor and run: [min(x, 0), max(x, 0)] on 256 codes. A calibrated range has to hold every input, this one follows
each; it cannot clip, and the items of a batch share it.
"""

from collections.abc import Callable

import numpy as np

from onnxvitq.core.formats import UINT8, QParams, TensorFormat
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import fake_quantize

DYNAMIC = TensorFormat(UINT8)  # the only format that DynamicQuantizeLinear has
SMALLEST_ROW = np.finfo(np.float32).tiny  # a row of zeros is divided by something, too, whose inverse is finite


def dynamic_params(x: FloatArray) -> QParams:
    """The quantizer that DynamicQuantizeLinear makes for a tensor of any shape; scale 1 where all of it is zero.

    In float32 throughout, as onnxruntime computes: in double the zero point would now and then round the other way.
    """
    zero, top = np.float32(0.0), np.float32(DYNAMIC.qmax)
    low, high = np.minimum(x.min(initial=0.0), zero), np.maximum(x.max(initial=0.0), zero)
    scale = (high - low) / top if high > low else np.float32(1.0)
    point = np.rint(np.clip(-low / scale, zero, top))
    return QParams(spec=DYNAMIC, scale=np.array(scale), zero_point=np.array(point, DYNAMIC.storage))


def fake_quantize_dynamic(x: FloatArray) -> FloatArray:
    """What is left of a tensor whose range is measured at run time; float32, same shape."""
    return fake_quantize(x, dynamic_params(x))


def fake_quantize_tokens(x: FloatArray) -> FloatArray:
    """What is left of (.., C) whose rows are first divided by their largest magnitude; float32, same shape.

    One step for a whole tensor is as wide as its largest token asks for; this way each token has steps of its own.
    """
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0.0), SMALLEST_ROW)
    return fake_quantize_dynamic(x * (np.float32(1.0) / largest)) * largest


def fake_quantize_samples(rows: FloatArray, quantizer: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """(S, r, C) sampled rows of S runs, each run with a range of its own: an estimate, the rows left out may reach further."""
    return np.stack([quantizer(sample) for sample in rows]) if len(rows) else rows
