"""What linear layers read of their input under a plan: with a calibrated range, one a sample, or one a token."""

from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.dynamic import fake_quantize_dynamic, fake_quantize_samples, fake_quantize_tokens


def quantized_input(plan: QuantPlan, tensor: str, value: FloatArray) -> FloatArray:
    """What linears read of their input in a run in which it has this value (.., C), all of it."""
    if tensor in plan.dynamic:
        return fake_quantize_tokens(value) if tensor in plan.per_token else fake_quantize_dynamic(value)
    params = plan.params(tensor)
    assert params is not None  # the min-max step ran before
    return fake_quantize(value, params)


def quantized_rows(plan: QuantPlan, tensor: str, rows: FloatArray) -> FloatArray:
    """What linears read of sampled rows (S, r, C) of their input."""
    return fake_quantize_samples(rows, lambda sample: quantized_input(plan, tensor, sample))
