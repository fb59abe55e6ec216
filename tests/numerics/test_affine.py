from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxvitq.core.formats import (
    INT8,
    NumberFormat,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QParams,
    TensorFormat,
    activation_format,
    weight_format,
)
from onnxvitq.numerics.affine import (
    SCALE_OF_ZEROS,
    SMALLEST_SCALE,
    bias_has_codes,
    dequantize,
    fake_quantize,
    least_squares_params,
    params_from_range,
    params_from_weight,
    product_unit,
    quantize,
    raise_for_bias,
)

UINT8 = activation_format(8)
WEIGHT = weight_format(8)
SHAPE = (4, 6, 50)

# An 8-bit or 16-bit quantizer that is not symmetric uses every code, as QuantizeLinear does.
FORMATS = pytest.mark.parametrize(
    ("bits", "signed"),
    [(8, True), (8, False), (16, True), (16, False)],
    ids=["int8", "uint8", "int16", "uint16"],
)
AXES = pytest.mark.parametrize("axis", [None, 0, 1], ids=["tensor", "axis0", "axis1"])


def onnxruntime_codes_and_values(x: np.ndarray, params: QParams) -> tuple[np.ndarray, np.ndarray]:
    """What QuantizeLinear and DequantizeLinear make of ``x``, each node run as written."""
    axis: dict[str, Any] = {} if params.spec.axis is None else {"axis": params.spec.axis}
    if isinstance(params.spec.granularity, PerBlock):
        axis = {"axis": params.spec.granularity.axis, "block_size": params.spec.granularity.size}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **axis),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"], **axis),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [
            helper.make_tensor_value_info("codes", helper.np_dtype_to_tensor_dtype(params.spec.storage), None),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, None),
        ],
        [onnx.numpy_helper.from_array(params.scale, "scale"), onnx.numpy_helper.from_array(params.zero_point, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    codes, values = session.run(["codes", "values"], {"x": x})
    return codes, values


def channels(values: np.ndarray, axis: int | None) -> np.ndarray:
    """(6,) -> () for a per-tensor quantizer, or as many as the axis of SHAPE has."""
    return values[0] if axis is None else values[: SHAPE[axis]]


def along(values: np.ndarray, axis: int | None) -> np.ndarray:
    """() or (C,) -> broadcasts along that axis of SHAPE."""
    return values if axis is None else values.reshape([-1 if i == axis else 1 for i in range(len(SHAPE))])


def made(bits: int, signed: bool, axis: int | None, scale: np.ndarray, zero: np.ndarray) -> QParams:
    spec = TensorFormat(
        NumberFormat(bits=bits, signed=signed, symmetric=False), PerTensor() if axis is None else PerChannel(axis)
    )
    return QParams(spec=spec, scale=channels(scale, axis), zero_point=channels(zero, axis) + spec.qmin)


def assert_equal_to_onnxruntime(x: np.ndarray, params: QParams) -> None:
    codes, values = onnxruntime_codes_and_values(x, params)
    got = quantize(x, params)
    assert got.dtype == codes.dtype
    assert np.array_equal(got, codes)
    assert np.array_equal(dequantize(codes, params), values)
    assert np.array_equal(fake_quantize(x, params), values)


@FORMATS
@AXES
def test_random_values_as_onnxruntime(bits: int, signed: bool, axis: int | None) -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.001, 0.1, 6).astype(np.float32)
    zero = rng.integers(0, 2**bits, 6)
    spread = np.float32(2**bits) * along(channels(scale, axis), axis)  # so that about one in three saturates
    x = (rng.standard_normal(SHAPE) * spread).astype(np.float32)
    params = made(bits, signed, axis, scale, zero)
    codes = quantize(x, params)
    assert (codes == params.spec.qmin).any()
    assert (codes == params.spec.qmax).any()
    assert_equal_to_onnxruntime(x, params)


@FORMATS
@AXES
@pytest.mark.parametrize("scale", [0.25, 0.1, 1 / 3], ids=["exact", "tenth", "third"])
def test_ties_as_onnxruntime(bits: int, signed: bool, axis: int | None, scale: float) -> None:
    scales = (scale * np.array([1, 2, 0.5, 4, 8, 0.25])).astype(np.float32)
    params = made(bits, signed, axis, scales, np.array([7, 0, 2**bits - 1, 128, 3, 64]))
    steps = np.arange(-SHAPE[-1] // 2, SHAPE[-1] // 2).astype(np.float32) + np.float32(0.5)
    x = np.broadcast_to(steps, SHAPE) * along(params.scale, axis)
    assert_equal_to_onnxruntime(x, params)


@FORMATS
@AXES
def test_edges_as_onnxruntime(bits: int, signed: bool, axis: int | None) -> None:
    params = made(bits, signed, axis, np.full(6, 0.02, np.float32), np.array([0, 2**bits - 1, 1, 100, 200, 255]))
    edges = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-12, 1e36, -1e36, np.inf, -np.inf, 1e6, -1e6], np.float32)
    x = np.resize(edges, SHAPE)
    assert_equal_to_onnxruntime(x, params)


@FORMATS
@pytest.mark.parametrize(("axis", "size"), [(1, 2), (2, 16), (2, 50)], ids=["whole", "short last", "token"])
def test_blocks_as_onnxruntime(bits: int, signed: bool, axis: int, size: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    spec = TensorFormat(NumberFormat(bits=bits, signed=signed, symmetric=False), PerBlock(axis=axis, size=size))
    scale = spec.granularity.largest(np.abs(x)) * np.float32(1.5 / 2**bits)  # some saturate
    zero = rng.integers(spec.qmin, spec.qmax + 1, scale.shape)
    params = QParams(spec=spec, scale=scale, zero_point=zero)
    assert_equal_to_onnxruntime(x, params)
    if size == SHAPE[-1]:  # one block a row is one scale a token
        tokens = QParams(spec=TensorFormat(spec.number, PerToken()), scale=scale, zero_point=zero)
        assert np.array_equal(fake_quantize(x, tokens), fake_quantize(x, params))


def test_scales_of_blocks_and_tokens_are_those_of_their_largest_values() -> None:
    weight = np.array([[1, -2], [4, 3], [-8, 7]], np.float32)
    blocks = params_from_weight(weight, TensorFormat(INT8, PerBlock(axis=0, size=2)))
    np.testing.assert_array_equal(blocks.scale, np.array([[4, 3], [8, 7]], np.float32) / np.float32(127))
    tokens = params_from_weight(weight, TensorFormat(INT8, PerToken()))
    np.testing.assert_array_equal(tokens.scale, np.array([[2], [4], [8]], np.float32) / np.float32(127))


def test_the_comparison_sees_a_wrong_zero_point() -> None:
    x = np.linspace(-1, 1, 300, dtype=np.float32).reshape(4, 3, 25)
    right = QParams(spec=UINT8, scale=np.array(0.01, np.float32), zero_point=np.array(128))
    wrong = QParams(spec=UINT8, scale=np.array(0.01, np.float32), zero_point=np.array(127))
    codes, values = onnxruntime_codes_and_values(x, right)
    assert np.array_equal(quantize(x, right), codes)
    assert not np.array_equal(quantize(x, wrong), codes)
    assert not np.array_equal(dequantize(codes, wrong), values)


def test_quantize_worked() -> None:
    params = QParams(spec=UINT8, scale=np.array(0.5, np.float32), zero_point=np.array(10))
    x = np.array([0.0, 0.25, 0.75, -0.25, 1.0, -5.5, 200.0], np.float32)
    # In steps 0, 0.5, 1.5, -0.5, 2, -11, 400: halves go to the even side, then 10 is added, then saturation.
    assert quantize(x, params).tolist() == [10, 10, 12, 10, 12, 0, 255]
    assert fake_quantize(x, params).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, -5.0, 122.5]


def test_a_symmetric_format_gives_up_its_lowest_code() -> None:
    params = QParams(spec=TensorFormat(INT8), scale=np.array(1, np.float32), zero_point=np.array(0))
    assert quantize(np.array([-1000.0, -128.0, 1000.0], np.float32), params).tolist() == [-127, -127, 127]


def test_seven_bit_codes_stay_within_63() -> None:
    spec = weight_format(7)
    weight = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    codes = quantize(weight, params_from_weight(weight, spec))
    assert codes.dtype == np.int8
    assert np.abs(codes).max(axis=0).tolist() == [63] * 8  # the largest weight of every channel sits on the last code
    clipped = quantize(weight, params_from_weight(weight, spec, 0.5))
    assert (clipped.min(), clipped.max()) == (-63, 63)


@pytest.mark.parametrize("bits", [4, 7, 8, 16])
@AXES
def test_fake_quantize_is_dequantize_of_quantize_and_writes_nothing(bits: int, axis: int | None) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    x.setflags(write=False)
    spec = TensorFormat(
        NumberFormat(bits=bits, signed=False, symmetric=False), PerTensor() if axis is None else PerChannel(axis)
    )
    scale = channels(rng.uniform(0.5, 2, 6).astype(np.float32) * 4 / 2**bits, axis)
    params = QParams(spec=spec, scale=scale, zero_point=np.full(scale.shape, 2 ** (bits - 1)))
    codes = quantize(x, params)
    once = fake_quantize(x, params)
    assert codes.dtype == spec.storage
    assert codes.max() <= spec.qmax  # 4 bits in a byte: the format's own range, not the storage's
    assert once.dtype == dequantize(codes, params).dtype == np.float32
    assert np.array_equal(once, dequantize(codes, params))
    assert np.array_equal(fake_quantize(once, params), once)  # what is on the grid stays there


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (-0.3, 2.7), (0.0, 5.0), (2.0, 5.0), (-5.0, -2.0), (-1e-3, 700.0), (-1e4, 1e-2), (0.1, 0.1)],
)
@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_params_from_range_covers_the_range_and_holds_zero(
    low: float, high: float, signed: bool, symmetric: bool
) -> None:
    if symmetric and not signed:
        low = max(low, 0.0)  # a symmetric unsigned format holds no negative number
        high = max(high, 0.0)
    params = params_from_range(low, high, TensorFormat(NumberFormat(bits=8, signed=signed, symmetric=symmetric)))
    assert fake_quantize(np.zeros(3, np.float32), params).tolist() == [0.0, 0.0, 0.0]
    x = np.linspace(low, high, 5001).astype(np.float32)
    error = np.abs(fake_quantize(x, params).astype(np.float64) - x)
    # Half a step; x / scale is a float32 of at most 256, so a tie may move by 256 * 2^-24 steps.
    assert error.max() <= params.scale * (0.5 + 2e-5)


def test_params_from_range_worked() -> None:
    params = params_from_range(-1.0, 4.0, activation_format(2))
    assert params.scale == np.float32(5 / 3)
    assert params.zero_point == 1  # 1 / (5 / 3) = 0.6 of a step, rounded
    assert params_from_range(
        -8.0, 4.0, TensorFormat(NumberFormat(bits=4, signed=True, symmetric=True))
    ).scale == np.float32(8 / 7)
    assert params_from_range(1.0, 3.0, UINT8).scale == np.float32(3 / 255)  # widened to hold zero


@pytest.mark.parametrize("factor", [0.125, 2.0, 1024.0])
def test_scaling_the_range_scales_the_scale(factor: float) -> None:
    plain, scaled = (params_from_range(f * -0.7, f * 1.9, UINT8) for f in (1.0, factor))
    assert scaled.scale == plain.scale * np.float32(factor)
    assert scaled.zero_point == plain.zero_point


def test_a_tensor_of_zeros_has_a_positive_scale() -> None:
    for spec in (UINT8, TensorFormat(INT8)):
        params = params_from_range(0.0, 0.0, spec)
        assert params.scale == SCALE_OF_ZEROS
        assert params.zero_point == 0
    weight = params_from_weight(np.zeros((3, 2), np.float32), WEIGHT)
    assert weight.scale.tolist() == [SCALE_OF_ZEROS] * 2


@pytest.mark.parametrize("size", [1e-36, 1e-31, 1e-13, 1e30, 1e36])
def test_scales_follow_values_of_any_size(size: float) -> None:
    """What a quantizer leaves of values does not depend on their unit; only where float32 ends is there a floor."""
    weight = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    scaled = (weight.astype(np.float64) * size).astype(np.float32)
    limited = replace(WEIGHT, saturation_free=True)
    fits: list[Callable[[np.ndarray], QParams]] = [
        lambda w: params_from_weight(w, WEIGHT),
        lambda w: params_from_weight(w, limited),
        lambda w: least_squares_params(w, limited),
        lambda w: params_from_range(float(w.min()), float(w.max()), UINT8),
    ]
    for fit in fits:
        plain, own = fit(weight), fit(scaled)
        assert np.allclose(own.scale / np.float64(size), plain.scale, rtol=1e-6, atol=0)
        near = np.abs(quantize(weight, plain).astype(int) - quantize(scaled, own))
        assert near.max() <= 1  # a tie, moved by the rounding of the unit
        assert near.mean() < 0.01


def test_no_scale_is_below_the_smallest_normal_number() -> None:
    assert params_from_range(-1e-40, 1e-40, UINT8).scale == SMALLEST_SCALE
    assert (params_from_weight(np.full((2, 2), 1e-40, np.float32), WEIGHT).scale == SMALLEST_SCALE).all()


def test_what_float32_cannot_scale_is_seen() -> None:
    def params(scale: float) -> QParams:
        return QParams(spec=UINT8, scale=np.array(scale, np.float32), zero_point=np.array(0))

    assert product_unit(params(0.5), params(0.25)) == 0.125
    assert product_unit(params(1e-20), params(1e-20)) == 0  # of float32's product a few digits are left at most
    assert product_unit(params(float(SMALLEST_SCALE)), params(100.0)) == 0
    assert product_unit(params(1e20), params(1e20)) == np.inf


def test_a_bias_that_would_round_weights_away_has_no_codes() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    params = params_from_weight(weight, WEIGHT)
    assert bias_has_codes(params, np.array([1.0, -2.0, 1e4], np.float32), 0.02)
    assert not bias_has_codes(params, np.array([1.0, -2.0, 1e9], np.float32), 0.02)
    weight[:, 0] = 1e-20  # a dead channel: its scale may be as wide as the others'
    assert bias_has_codes(params_from_weight(weight, WEIGHT), np.array([1.0, -2.0, 3.0], np.float32), 0.02)


@pytest.mark.parametrize(
    ("low", "high", "spec"),
    [
        (1.0, -1.0, UINT8),
        (-np.inf, 1.0, UINT8),
        (0.0, np.nan, UINT8),
        (-1.0, 1.0, TensorFormat(UINT8.number, PerChannel(1))),
    ],
    ids=["reversed", "infinite", "nan", "axis"],
)
def test_params_from_range_refuses(low: float, high: float, spec: TensorFormat) -> None:
    with pytest.raises(ValueError, match="expected a finite range and a per-tensor spec"):
        params_from_range(low, high, spec)


def test_params_from_weight_worked() -> None:
    weight = np.array([[1.0, -4.0], [-2.0, 0.5]], np.float32)
    assert params_from_weight(weight, WEIGHT).scale.tolist() == [np.float32(2) / 127, np.float32(4) / 127]
    assert params_from_weight(weight, WEIGHT, 0.5).scale.tolist() == [np.float32(1) / 127, np.float32(2) / 127]
    by_row = TensorFormat(INT8, PerChannel(0))
    assert params_from_weight(weight, by_row).scale.tolist() == [np.float32(4) / 127, np.float32(2) / 127]
    whole = params_from_weight(weight, TensorFormat(INT8))
    assert whole.scale == np.float32(4) / 127
    assert whole.zero_point == 0


def test_weights_need_a_symmetric_format() -> None:
    with pytest.raises(ValueError, match="symmetrically"):
        params_from_weight(
            np.ones((2, 2), np.float32), TensorFormat(NumberFormat(bits=8, signed=True, symmetric=False))
        )


def test_raise_for_bias_prevents_overflow_and_leaves_the_rest_alone() -> None:
    scale = np.array([1e-9, 0.01, 0.02, 1e-12], np.float32)
    params = QParams(spec=WEIGHT, scale=scale, zero_point=np.zeros(4, int))
    bias = np.array([30.0, 5.0, -3.0, -1.0], np.float32)
    input_scale = 0.05
    overflowing = np.abs(bias.astype(np.float64) / (input_scale * scale)) > 2**31 - 1
    assert overflowing.tolist() == [True, False, False, True]
    raised = raise_for_bias(params, bias, input_scale)
    assert np.array_equal(raised.scale[1:3], scale[1:3])
    codes = np.rint(bias.astype(np.float64) / (input_scale * raised.scale.astype(np.float64)))
    assert np.abs(codes[[0, 3]] / 2**30 - np.sign(bias[[0, 3]])).max() < 2**-23  # half the range, to a float32 scale
    assert (raised.spec, raised.zero_point.tolist()) == (WEIGHT, [0] * 4)


def test_raise_for_bias_without_need_changes_nothing() -> None:
    params = QParams(spec=WEIGHT, scale=np.full(3, 0.01), zero_point=np.zeros(3, int))
    assert np.array_equal(raise_for_bias(params, np.zeros(3, np.float32), 0.1).scale, params.scale)


@pytest.mark.parametrize("bits", [3, 6])
def test_least_squares_scales_do_not_depend_on_the_columns_beside(bits: int) -> None:
    weight = np.random.default_rng(0).standard_t(4, size=(40, 300)).astype(np.float32)
    spec = weight_format(bits)
    scale = least_squares_params(weight, spec).scale
    for column in (0, 127, 128, 299):
        assert least_squares_params(weight[:, [column]], spec).scale == scale[[column]]
