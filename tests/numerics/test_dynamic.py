"""Ranges measured at run time are onnxruntime's DynamicQuantizeLinear, to the bit."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxvitq.numerics.affine import dequantize, quantize
from onnxvitq.numerics.dynamic import (
    DYNAMIC,
    dynamic_params,
    fake_quantize_dynamic,
    fake_quantize_samples,
    fake_quantize_tokens,
)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    """DynamicQuantizeLinear alone, of any vector."""
    outputs = {"codes": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], list(outputs))],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def values(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 5])
    x = rng.standard_t(2, rng.integers(1, 400)) * 10.0 ** rng.uniform(-20, 20)
    return {"both": x, "positive": np.abs(x), "negative": -np.abs(x), "narrow": x[0] + 1e-3 * x}[kind].astype(
        np.float32
    )


@pytest.mark.parametrize("kind", ["both", "positive", "negative", "narrow"])
def test_codes_scale_and_zero_point_are_onnxruntimes(session: ort.InferenceSession, kind: str) -> None:
    for seed in range(200):
        x = values(kind, seed)
        codes, scale, zero = session.run(None, {"x": x})
        params = dynamic_params(x)
        assert (params.scale.tobytes(), int(params.zero_point)) == (scale.tobytes(), int(zero)), seed
        assert np.array_equal(quantize(x, params), codes), seed


def test_a_tensor_of_zeros_has_a_scale_of_one(session: ort.InferenceSession) -> None:
    x = np.zeros(7, np.float32)
    _, scale, zero = session.run(None, {"x": x})
    params = dynamic_params(x)
    assert (float(params.scale), int(params.zero_point)) == (float(scale), int(zero)) == (1.0, 0)


def test_a_tensor_without_values_is_quantized_to_nothing() -> None:
    assert fake_quantize_dynamic(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_fake_quantization_is_the_round_trip() -> None:
    x = values("both", 3).reshape(1, -1)
    params = dynamic_params(x)
    assert params.spec == DYNAMIC
    assert np.array_equal(fake_quantize_dynamic(x), dequantize(quantize(x, params), params))


def test_each_sample_has_a_range_of_its_own() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32) * np.array([1e-3, 1, 1e3])[:, None, None]
    rows = rows.astype(np.float32)
    seen = fake_quantize_samples(rows, fake_quantize_dynamic)
    assert all(np.array_equal(seen[index], fake_quantize_dynamic(rows[index])) for index in range(3))
    together = fake_quantize_dynamic(rows)
    assert not together[0].any()  # the largest sample's steps are wider than all of the smallest
    assert np.abs(seen[0] - rows[0]).max() < 0.01 * np.abs(rows[0]).max()
    assert fake_quantize_samples(rows[:0], fake_quantize_dynamic).shape == (0, 4, 5)


def test_each_token_has_steps_of_its_own() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    x *= np.array([1e-6, 1.0, 1e3, 0.0], np.float32)[:, None]
    error = np.abs(fake_quantize_tokens(x) - x).max(axis=-1)
    # At most half a step of (largest - smallest) / 255 of what lies in [-1, 1], and the rounding of the division.
    assert (error <= np.abs(x).max(axis=-1) * (1.001 / 255)).all()
    assert not np.isnan(error).any()
    plain = np.abs(fake_quantize_dynamic(x) - x).max(axis=-1)
    assert (plain[:, :2] > 10 * error[:, :2]).all()  # where the largest token sets the step
    assert fake_quantize_tokens(x[:, :0]).shape == (2, 0, 5)
