"""What a plan becomes in the graph, which kernels onnxruntime then runs, and that they compute what the plan says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from layout_cases import FLOAT_PRODUCTS, ONE_LINEAR, ROUNDING, Case, case_of, counts, initializers, node_of, optimised
from textgraph import difference, digest, feeds_of, graph_of, proto_of, run
from transformer_text import transformer

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import PlanError
from onnxvitq.core.formats import QParams
from onnxvitq.core.plan import QuantPlan, planned_linear, planned_products
from onnxvitq.fit.initial_plan import ACTIVATION, make_plan
from onnxvitq.graph.canonical import run_pass
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.passes.selection import pick_early
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import to_proto
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.targets.ort_cpu import linears as linears_written
from onnxvitq.targets.ort_cpu.draft import integer_name
from onnxvitq.targets.ort_cpu.fusions import FUSED_INTO_GEMM
from onnxvitq.targets.ort_cpu.layout import apply_plan


@pytest.fixture(scope="module")
def small() -> Case:
    return case_of(graph_of(transformer(tokens="17")))


# -------------------------------------------------------------------------------------------------- input and output


def test_the_graph_given_is_left_as_it_was(small: Case) -> None:
    weights = [tensor.values for tensor in small.graph.tensors().values() if isinstance(tensor, gs.Constant)]
    for values in weights:
        values.setflags(write=False)
    before = digest(small.graph)
    written = apply_plan(small.graph, small.layers, small.plan)
    written.nodes.clear()
    assert digest(small.graph) == before


def test_the_same_plan_gives_the_same_bytes(small: Case) -> None:
    assert small.written().SerializeToString() == small.written().SerializeToString()


def picked(graph: gs.Graph) -> onnx.ModelProto:
    """The float model, its last block for the class token alone."""
    copy = graph.copy()
    assert run_pass(copy, pick_early) > 0
    return proto_of(copy)


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_an_empty_plan_is_the_float_model_bit_for_bit(small: Case, level: str) -> None:
    written, expected = small.written(QuantPlan()), picked(small.graph)
    assert counts(written) == counts(expected)
    assert difference(run(written, small.feeds, level), run(expected, small.feeds, level)) == 0.0


def test_a_plan_that_was_never_fitted_writes_nothing(small: Case) -> None:
    unfitted = make_plan(small.blockmap, QuantConfig())
    assert counts(small.written(unfitted)) == counts(picked(small.graph))


def test_the_interface_stays(small: Case) -> None:
    written, original = small.written(), proto_of(small.graph)
    assert [value.name for value in written.graph.input] == ["tokens"]
    assert written.graph.input == original.graph.input
    assert [value.name for value in written.graph.output] == ["logits"]
    assert run(written, small.feeds)[0].shape == run(original, small.feeds)[0].shape


# ---------------------------------------------------------------------------------------------------------- kernels


def assert_integer(case: Case, folder: Path) -> None:
    """Every linear on QGemm, every product on an integer MatMul, no float product left; and the float model's answer."""
    written = case.written()
    ran = counts(optimised(written, folder))
    linears, products = len(case.blockmap.linears), 2 * len(case.blockmap.attentions)
    assert ran["QGemm"] == linears
    assert ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] == products
    assert not ran.keys() & FLOAT_PRODUCTS
    # Not how good 8 bits are, but that it is the same model: a wrong layout is off by the size of the output itself.
    original = proto_of(case.graph)
    for level in ("disabled", "all"):
        assert difference(run(written, case.feeds, level), run(original, case.feeds)) < 0.15


@pytest.mark.parametrize(
    ("batch", "tokens"), [("N", "T"), ("N", "17"), ("2", "17"), ("1", "T")], ids=["both", "batch", "nothing", "tokens"]
)
def test_a_transformer_runs_on_integers_whatever_is_dynamic(tmp_path: Path, batch: str, tokens: str) -> None:
    case = case_of(graph_of(transformer(batch=batch, tokens=tokens)))
    assert len(case.blockmap.linears) == 13
    assert_integer(case, tmp_path)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_exported_vit_runs_on_integers(
    export_vit: Callable[[str, bool], onnx.ModelProto], tmp_path: Path, exporter: str, dynamic: bool
) -> None:
    onnx.save(export_vit(exporter, dynamic), tmp_path / "vit.onnx")
    case = case_of(load_model(tmp_path / "vit.onnx").graph)
    assert len(case.blockmap.linears) == 14
    assert_integer(case, tmp_path)


def test_a_dynamic_model_runs_at_sizes_it_was_not_made_with() -> None:
    case = case_of(graph_of(transformer()))
    written, original = case.written(), proto_of(case.graph)
    for sizes in ({"N": 1, "T": 1}, {"N": 5, "T": 9}):
        feeds = feeds_of(original, seed=1, **sizes)
        assert run(written, feeds, "all")[0].shape == run(original, feeds)[0].shape == (sizes["N"], 5)


def test_batch_items_do_not_touch_each_other() -> None:
    case = case_of(graph_of(transformer()))
    written, tokens = case.written(), case.feeds["tokens"]
    together = run(written, {"tokens": tokens}, "all")[0]
    alone = np.concatenate([run(written, {"tokens": item[None]}, "all")[0] for item in tokens])
    assert difference([alone], [together]) <= 1e-5  # float parts are vectorised otherwise, no code flips here


# ------------------------------------------------------------------------------------- the numbers are those of the plan

# 7-bit weights: u8 x s8 products do not saturate on any processor, so that this holds on all of them.


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_linear_computes_what_fake_quantization_says(level: str) -> None:
    case = case_of(graph_of(ONE_LINEAR), bits="w7a8")
    x, weight = case.plan.params("x"), case.plan.params("W")
    assert x is not None
    assert weight is not None
    step = x.scale * weight.scale
    bias = np.rint(case.layers.bias("p").astype(np.float64) / step) * step
    expected = (
        fake_quantize(case.feeds["x"], x).astype(np.float64) @ fake_quantize(case.layers.weight("p"), weight) + bias
    )
    # The input's codes are the same to the bit, so no code can flip: only float rounding is left.
    assert difference([run(case.written(), case.feeds, level)[0]], [expected]) <= ROUNDING


def fitted(plan: QuantPlan, name: str) -> QParams:
    params = plan.params(name)
    assert params is not None
    return params


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_an_attention_computes_what_fake_quantization_says(level: str) -> None:
    case = case_of(
        graph_of(
            "(float[N,2,17,16] q, float[N,2,16,17] k, float[N,2,17,16] v) => (float[A,B,C,D] y)"
            "{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"
        )
    )
    params = {name: fitted(case.plan, name) for name in "qkpv"}
    quantized = {name: fake_quantize(case.feeds[name], params[name]).astype(np.float64) for name in "qkv"}
    scores = quantized["q"] @ quantized["k"]
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    expected = fake_quantize(probs.astype(np.float32), params["p"]).astype(np.float64) @ quantized["v"]
    error = np.abs(run(case.written(), case.feeds, level)[0] - expected)
    # A probability within float rounding of a tie may take the other code: one step of it, in few places.
    assert error.max() <= params["p"].scale * np.abs(quantized["v"]).max() * 1.001
    assert np.mean(error > ROUNDING * np.abs(expected).max()) < 0.01


def test_a_tiny_weight_with_a_large_bias_does_not_overflow() -> None:
    weight = np.full((32, 24), 0.1, np.float32)
    weight[:, 3] = 1e-12
    bias = np.linspace(-1, 1, 24, dtype=np.float32)
    bias[3] = 1e4
    case = case_of(graph_of(ONE_LINEAR, weights={"W": weight, "b": bias}))
    written = case.written()
    codes = initializers(written)["p_bias_codes"]
    assert codes.dtype == np.int32
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 1
    y = run(written, case.feeds, "all")[0]
    assert np.abs(y[..., 3] - 1e4).max() <= 0.01  # what is left of the weight's scale is worth less than that


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_bias_too_large_for_int32_is_added_in_float(level: str) -> None:
    """Widening the channel's scale until int32 holds the bias would round its weights away."""
    weight, bias = np.random.default_rng(0).normal(size=(32, 24)).astype(np.float32), np.ones(24, np.float32)
    bias[3] = 1e9
    case = case_of(graph_of(ONE_LINEAR, weights={"W": weight, "b": bias}))
    written = case.written()
    values = initializers(written)
    assert (
        np.abs(values["p_weight_codes"][:, 3].astype(int)).max() > 64
    )  # with the scale that int32 asks for it would be 1
    assert "p_bias_codes" not in values
    expected = case.feeds["x"].astype(np.float64) @ weight + bias
    y = run(written, case.feeds, level)[0]
    ordinary = np.arange(24) != 3
    assert difference([y[..., ordinary]], [expected[..., ordinary]]) < 0.02
    assert np.abs(y[..., 3] - expected[..., 3]).max() <= 64  # a step of float32 at 1e9


# ----------------------------------------------------------------------------------------------------------- the layout


def test_a_linear_is_written_as_a_gemm_of_codes(small: Case) -> None:
    written = small.written()
    values = initializers(written)
    gemm = node_of(written, integer_name("b0_fc1"))
    makers = {output: node for node in written.graph.node for output in node.output}
    activation, weight, bias = (makers[name] for name in gemm.input)
    assert (gemm.op_type, list(gemm.attribute)) == ("Gemm", [])  # factors of one, nothing transposed
    assert [node.op_type for node in (activation, weight, bias)] == ["DequantizeLinear"] * 3

    quantize = makers[activation.input[0]]
    assert quantize.op_type == "QuantizeLinear"
    assert list(quantize.input[1:]) == list(activation.input[1:])
    scale, zero = (values[name] for name in activation.input[1:])
    assert (scale.shape, scale.dtype, zero.shape, zero.dtype) == ((), np.dtype(np.float32), (), np.dtype(np.uint8))

    codes, weight_scale, weight_zero = (values[name] for name in weight.input)
    assert (codes.shape, codes.dtype) == ((32, 64), np.dtype(np.int8))
    assert (weight_scale.shape, weight_scale.dtype) == ((64,), np.dtype(np.float32))
    assert (weight_zero.shape, weight_zero.dtype, weight_zero.any()) == ((64,), np.dtype(np.int8), np.False_)
    assert [(attribute.name, attribute.i) for attribute in weight.attribute] == [("axis", 1)]

    bias_codes, bias_scale, bias_zero = (values[name] for name in bias.input)
    assert (bias_codes.shape, bias_codes.dtype) == ((64,), np.dtype(np.int32))
    assert np.array_equal(bias_scale, scale * weight_scale)
    assert (bias_zero.shape, bias_zero.dtype, bias_zero.any()) == ((64,), np.dtype(np.int32), np.False_)
    float_bias = small.layers.bias("b0_fc1")
    assert np.abs(bias_codes * bias_scale - float_bias).max() <= bias_scale.max() / 2 * 1.001  # half a step


def test_weights_keep_within_their_bits() -> None:
    for bits, largest in ((8, 127), (7, 63)):
        case = case_of(graph_of(ONE_LINEAR), bits=f"w{bits}a8", target="x86-vnni")
        codes = initializers(case.written())["p_weight_codes"]
        assert np.abs(codes.astype(int)).max(axis=0).tolist() == [largest] * 24  # min-max: every column reaches it


def test_a_tensor_is_quantized_once_for_all_its_readers(small: Case) -> None:
    written = small.written()
    activations = [d for d in small.plan.decisions.values() if d.site.kind == "activation"]
    assert len(activations) == 2 * (4 + 4) + 1
    assert (
        counts(written)["QuantizeLinear"] == len(activations) + 1
    )  # the last query reads one row of its block's input
    readers = Counter(name for node in written.graph.node for name in node.input)
    assert readers["b0_norm1_dequantize"] == 3  # q, k and v


def test_the_last_block_computes_the_token_that_is_read(small: Case) -> None:
    written = onnx.shape_inference.infer_shapes(small.written())
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in written.graph.value_info
    }
    assert sizes["b1_scores"][1:] == [2, 1, 17]
    assert sizes["norm_apart"][1:] == [1, 32]
    assert sizes["b0_scores"][1:] == [2, 17, 17]


VALUES = (
    "(float[N,2,17,16] q, float[N,2,16,17] k, float[N,17,2,16] u) => (float[A,B,C,D] y)"
    "{ s = MatMul(q, k) p = Softmax<axis = -1>(s) v = Transpose<perm = [0, 2, 1, 3]>(u) y = MatMul(p, v) }"
)


def test_values_are_signed_codes_in_front_of_their_transpose(tmp_path: Path) -> None:
    case = case_of(graph_of(VALUES))
    written = case.written()
    quantize = next(node for node in written.graph.node if node.input[0] == "u")
    zeros, params = initializers(written)[quantize.input[2]], case.plan.params("v")
    assert params is not None
    assert quantize.op_type == "QuantizeLinear"
    assert zeros.dtype == np.int8
    assert zeros.tolist() == [int(params.zero_point) - 128] * 17
    ran = optimised(written, tmp_path)
    [product] = [node for node in ran.graph.node if node.name == "y"]
    kinds = {node.output[0]: node for node in ran.graph.node}
    assert product.op_type == "MatMulIntegerToFloat"
    assert kinds[product.input[1]].op_type == "Transpose"  # of bytes: nothing was made unsigned again, or float
    assert kinds[kinds[product.input[1]].input[0]].op_type == "QuantizeLinear"


@pytest.mark.parametrize(
    ("bits", "target", "dtype"), [(7, "x86-vnni", np.uint8), (8, "x86-vnni", np.int8), (8, "auto", np.uint8)]
)
def test_values_stay_unsigned_where_16_bits_might_overflow(bits: int, target: str, dtype: type) -> None:
    # 7 bits, or the target, ask for a model that is safe without VNNI. Codes of a late division do not add up to one a row.
    late = VALUES.replace("p = Softmax<axis = -1>(s)", "w = Softmax<axis = -1>(s) p = Mul(w, c)")
    text = late.replace("(float[A,B,C,D] y)", "(float[A,B,C,D] y) <float[17] c>")
    text = text.replace("{ s =", "{ z = MatMul(u, W) s =").replace("<float[17] c>", "<float[17] c, float[16,16] W>")
    text = text.replace("float[A,B,C,D] y)", "float[A,B,C,D] y, float[E,F,G,H] z)")
    case = case_of(graph_of(text), bits=f"w{bits}a8", target=target)
    [attention] = case.blockmap.attentions
    assert attention.probs == "p"
    written = case.written()
    assert initializers(written)[node_of(written, "v_dequantize").input[2]].dtype == dtype


def test_zeros_are_stored_once(small: Case) -> None:
    zeros = {name: value for name, value in initializers(small.written()).items() if name.startswith("zeros_")}
    kinds = [(value.dtype, value.shape) for value in zeros.values()]
    assert len(kinds) == len(set(kinds)) == 2 * 3  # int8 and int32, for 32, 64 and 5 outputs


def test_no_float_weight_is_left_in_the_file(small: Case) -> None:
    values = initializers(small.written())
    assert not {linear.weight for linear in small.blockmap.linears} & values.keys()
    assert not {linear.bias for linear in small.blockmap.linears} & values.keys()
    assert not [name for name, value in values.items() if value.dtype == np.float32 and value.ndim > 1]


TIED = (
    "(float[N,5,32] x, float[N,5,32] u) => (float[A,B,C] y, float[D,E,F] z) <float[32,32] W, float[32] b>"
    "{ p = MatMul(x, W) pb = Add(p, b) r = MatMul(u, W) t = Transpose<perm = [0, 2, 1]>(r) s = MatMul(pb, t)"
    " w = Softmax<axis = -1>(s) z = MatMul(w, u) y = Tanh(r) }"
)


def test_a_tied_weight_is_stored_once() -> None:
    case = case_of(graph_of(TIED))
    assert {linear.weight for linear in case.blockmap.linears} == {"W"}
    values = initializers(case.written())
    assert [value.shape for value in values.values() if value.dtype == np.int8 and value.ndim == 2] == [(32, 32)]


def test_a_tied_weight_is_stored_twice_where_a_bias_needs_a_larger_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    weight[:, 3] = 1e-12
    case = case_of(graph_of(TIED, weights={"W": weight, "b": np.ones(32, np.float32)}))
    values = initializers(case.written())
    assert [value.shape for value in values.values() if value.dtype == np.int8 and value.ndim == 2] == [(32, 32)] * 2


def packed(case: Case) -> onnx.ModelProto:
    proto = to_proto(apply_plan(case.graph, case.layers, case.plan, packed=True), {})
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("level", ["disabled", "all"])
@pytest.mark.parametrize("bits", range(2, 8))
def test_packed_weights_compute_the_same_to_the_bit(
    small: Case, monkeypatch: pytest.MonkeyPatch, bits: int, level: str
) -> None:
    monkeypatch.setattr("onnxvitq.targets.ort_cpu.packing.NODE_BYTES", 0)  # or these weights would be too small
    case = case_of(small.graph.copy(), bits=f"w{bits}a6")
    model = packed(case)
    assert {node.op_type for node in model.graph.node} >= {"Split", "BitShift"}
    assert difference(run(model, case.feeds, level), run(case.written(), case.feeds, level)) == 0


@pytest.mark.parametrize(("bits", "at_load"), [("w8a8", False), ("w5a8", True)])
def test_units_of_biases_are_stored_unless_weights_are_packed(small: Case, bits: str, at_load: bool) -> None:
    model = packed(case_of(small.graph.copy(), bits=bits))
    units = {node.name for node in model.graph.node if node.name.endswith("_bias_scale")}
    assert ("b0_fc1_bias_scale" in units) is at_load
    assert ("b0_fc1_bias_scale" in initializers(model)) is not at_load


def test_packed_weights_run_on_the_same_kernels(small: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxvitq.targets.ort_cpu.packing.NODE_BYTES", 0)
    case = case_of(small.graph.copy(), bits="w5a4")
    before, after = optimised(case.written(), tmp_path), optimised(packed(case), tmp_path)
    assert counts(before) == counts(after)
    assert counts(after)["QGemm"] == len(case.blockmap.linears)


def test_a_tied_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxvitq.targets.ort_cpu.packing.NODE_BYTES", 0)
    case = case_of(graph_of(TIED), bits="w4a8", edges_at_8_bits=False)
    values = initializers(packed(case)).values()
    assert [value.shape for value in values if value.dtype == np.uint8 and value.ndim == 2] == [(16, 32)]


def test_a_linear_without_a_bias_gets_a_bias_of_zeros() -> None:
    case = case_of(graph_of(TIED))
    written = case.written()
    assert not initializers(written)["r_bias_codes"].any()
    assert len(node_of(written, integer_name("r")).input) == 3


def test_new_biases_replace_those_of_the_model(small: Case) -> None:
    moved = small.layers.bias("head") + np.float32(0.25)
    before, after = (
        initializers(small.written(plan)) for plan in (small.plan, small.plan.with_biases({"head": moved}))
    )
    steps = 0.25 / before["head_bias_scale"]
    change = after["head_bias_codes"].astype(np.float64) - before["head_bias_codes"]
    assert np.abs(change - steps).max() <= 1  # both roundings
    assert np.array_equal(after["head_bias_scale"], before["head_bias_scale"])


def test_rows_are_joined_only_where_there_are_more_than_two_dimensions(small: Case) -> None:
    written = small.written()
    head = node_of(written, integer_name("head"))
    makers = {output: node for node in written.graph.node for output in node.output}
    assert makers[makers[head.input[0]].input[0]].input[0] == "class_token"  # (batch, 32) as it is
    assert list(head.output) == ["logits"]


def test_neighbouring_reshapes_are_merged() -> None:
    text = (
        transformer(tokens="17", depth=1)
        .replace("{0, 0, 2, 16}", "{-1, 17, 2, 16}")
        .replace("{0, 0, 32}", "{-1, 17, 32}")
    )
    makers = {output: node for node in case_of(graph_of(text)).written().graph.node for output in node.output}
    pairs = [node for node in makers.values() if node.op_type == "Reshape" and node.input[0] in makers]
    assert pairs
    assert not [node.name for node in pairs if makers[node.input[0]].op_type == "Reshape"]


def test_unknown_leading_sizes_are_computed_once_a_tensor() -> None:
    written = case_of(graph_of(transformer(depth=1))).written()
    shapes = [node.input[0] for node in written.graph.node if node.op_type == "Shape"]
    assert shapes
    assert max(Counter(shapes).values()) == 1


def test_one_unknown_leading_size_is_a_constant(small: Case) -> None:
    assert not counts(small.written()).keys() & {"Shape", "Slice", "Concat"}


def test_attention_over_channels_keeps_its_order() -> None:
    case = case_of(
        graph_of(
            "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,3,5] v) => (float[A,B,C,D] y)"
            "{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(v, p) }"
        )
    )
    written = case.written()
    assert list(node_of(written, "y").input) == ["v_dequantize", "p_dequantize"]
    assert (
        difference(run(written, case.feeds), run(proto_of(case.graph), case.feeds)) < 0.1
    )  # 8 bits, not another product


# ------------------------------------------------------------------------------------------ products outside attentions

GRAM = (
    "(float[N,5,8] x) => (float[A,B,C] y, float[D,E,F,G] z) <float[8,8] W, int64[4] split = {0, 0, 2, 4}, float[2,4,9] table>"
    "{ w = MatMul(x, W) t = Transpose<perm = [0, 2, 1]>(w) y = MatMul(t, w) r = Reshape(w, split)"
    " h = Transpose<perm = [0, 2, 1, 3]>(r) z = MatMul(h, table) }"
)


def with_exact_steps(case: Case, tensors: dict[str, float]) -> QuantPlan:
    """The plan with steps that are powers of two and a zero point of 120: every sum of codes is exact in float32."""
    return case.plan.with_params(
        {
            name: QParams(spec=ACTIVATION, scale=np.array(step, np.float32), zero_point=np.array(120))
            for name, step in tensors.items()
        }
    )


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_products_compute_what_fake_quantization_says_to_the_bit(level: str) -> None:
    case = case_of(graph_of(GRAM), nodes_to_exclude=("w",))
    assert [(product.name, product.constant) for product in case.blockmap.products] == [("y", ""), ("z", "table")]
    plan = with_exact_steps(case, {"t": 2**-5, "w": 2**-6, "h": 2**-4, "table": 2**-7})
    params = {name: fitted(plan, name) for name in ("t", "w", "h", "table")}
    w = run(to_proto(with_outputs(case.graph, ["w"]), {}), case.feeds)[0]
    cut = w.reshape(*w.shape[:2], 2, 4).swapaxes(1, 2)
    operands = {"t": w.swapaxes(1, 2), "w": w, "h": cut, "table": case.layers.constants["table"]}
    quantized = {name: fake_quantize(np.ascontiguousarray(value), params[name]) for name, value in operands.items()}
    outputs = run(case.written(plan), case.feeds, level)
    assert np.array_equal(outputs[0], quantized["t"] @ quantized["w"])
    assert np.array_equal(outputs[1], quantized["h"] @ quantized["table"])
    assert not np.array_equal(outputs[1], cut @ operands["table"])


def test_products_run_on_integer_kernels(tmp_path: Path) -> None:
    case = case_of(graph_of(GRAM))
    assert planned_products(case.plan, case.blockmap) == ("y", "z")
    ran = counts(optimised(case.written(), tmp_path))
    assert (ran["QGemm"], ran["MatMulIntegerToFloat"]) == (1, 2)
    assert not ran.keys() & FLOAT_PRODUCTS


def test_a_constant_operand_is_stored_as_codes() -> None:
    written = case_of(graph_of(GRAM)).written()
    values = initializers(written)
    assert "table" not in values
    assert (values["table_codes"].dtype, values["table_codes"].shape) == (np.dtype(np.uint8), (2, 4, 9))
    assert "table" not in {
        name for node in written.graph.node if node.op_type == "QuantizeLinear" for name in node.input
    }


def test_a_constant_that_two_products_read_is_stored_once() -> None:
    text = GRAM.replace("z = MatMul(h, table)", "n = Neg(h) m = MatMul(n, table) o = MatMul(h, table) z = Add(m, o)")
    written = case_of(graph_of(text)).written()
    assert [value.shape for value in initializers(written).values() if value.dtype == np.uint8 and value.ndim == 3] == [
        (2, 4, 9)
    ]


@pytest.mark.parametrize("excluded", ["product0", "product1"])
def test_one_product_can_stay_float(excluded: str) -> None:
    case = case_of(graph_of(GRAM), nodes_to_exclude=(excluded,))
    left, kept = ("y", "z") if excluded == "product0" else ("z", "y")
    assert planned_products(case.plan, case.blockmap) == (kept,)
    written = case.written()
    assert not [name for name in node_of(written, left).input if name.endswith("_dequantize")]
    assert all(name.endswith("_dequantize") for name in node_of(written, kept).input)


# ---------------------------------------------------------------------------------- linears of two dimensions, activated


def activated(op: str, batch: str, opset: int = 17) -> Case:
    """Two linears that read one tensor (batch, 32), each followed by an activation, beside an attention."""
    text = (
        f"(float[{batch},32] x, float[{batch},5,4] q) => (float[A,B] y, float[C,D,E] z)"
        " <float[32,24] W, float[32,24] U, float[24] b>"
        f"{{ p = MatMul(x, W) pb = Add(p, b) pa = {op}(pb) r = MatMul(x, U) ra = {op}(r) y = Add(pa, ra)"
        " k = Transpose<perm = [0, 2, 1]>(q) s = MatMul(q, k) w = Softmax<axis = -1>(s) z = MatMul(w, q) }"
    )
    return case_of(graph_of(text, opset=opset))


@pytest.mark.parametrize("batch", ["N", "3"], ids=["dynamic", "static"])
@pytest.mark.parametrize("op", sorted(FUSED_INTO_GEMM))
def test_an_activation_behind_a_linear_of_two_dimensions_leaves_it_on_integers(
    tmp_path: Path, op: str, batch: str
) -> None:
    case = activated(op, batch)
    written = case.written()
    ran = counts(optimised(written, tmp_path))
    assert (ran["QGemm"], ran[op]) == (2, 2)
    assert not ran.keys() & FLOAT_PRODUCTS
    for level in ("disabled", "all"):
        assert difference(run(written, case.feeds, level), run(proto_of(case.graph), case.feeds)) < 0.1  # 8 bits


@pytest.mark.parametrize("batch", ["N", "3"], ids=["dynamic", "static"])
def test_without_a_reshape_between_a_relu_would_take_the_product_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    # Seen in onnxruntime 1.31 where two linears read the codes of one tensor, for Relu alone of the list.
    monkeypatch.setattr(linears_written, "FUSED_INTO_GEMM", frozenset())
    assert counts(optimised(activated("Relu", batch).written(), tmp_path))["FusedGemm"] == 2


@pytest.mark.parametrize("op", ["Gelu", "Erf", "HardSwish", "Mish", "Sin"])
def test_other_activations_need_no_reshape(tmp_path: Path, op: str) -> None:
    written = activated(op, "N", opset=20).written()
    assert counts(written)["Reshape"] == 0
    assert counts(optimised(written, tmp_path))["QGemm"] == 2


# -------------------------------------------------------------------------------------------------------- partial plans


def test_one_of_three_linears_that_share_an_input_stays_float(tmp_path: Path) -> None:
    case = case_of(graph_of(transformer(tokens="17")), nodes_to_exclude=("b0_k",))
    written = case.written()
    assert list(node_of(written, "b0_k").input) == ["b0_norm1_apart", "b0_k_W"]  # not the dequantized tensor
    assert node_of(written, "b0_norm1_apart").input[0] == "b0_norm1"
    assert {node.name for node in written.graph.node} >= {integer_name("b0_q"), integer_name("b0_v")}
    assert Counter(name for node in written.graph.node for name in node.input)["b0_norm1_dequantize"] == 2
    ran = counts(optimised(written, tmp_path))
    assert ran["QGemm"] == 12
    assert ran["Gemm"] + ran["MatMul"] == 1
    assert [planned_linear(case.plan, linear) for linear in case.blockmap.linears].count(False) == 1


def test_attention_can_stay_float(small: Case) -> None:
    case = case_of(graph_of(transformer(tokens="17")), attention="float")
    written = case.written()
    assert planned_products(case.plan, case.blockmap) == ()
    assert list(node_of(written, "b0_scores").input) == ["b0_q_t", "b0_k_t"]
    assert counts(written)["MatMul"] == 4
    assert counts(written)["Gemm"] == 13
    assert len(planned_products(small.plan, small.blockmap)) == 4


def test_one_product_of_an_attention_can_stay_float(small: Case) -> None:
    case = case_of(graph_of(transformer(tokens="17")), nodes_to_exclude=("block1.attn.context",))
    written = case.written()
    assert planned_products(case.plan, case.blockmap) == ("b0_scores", "b0_context", "b1_scores")
    assert list(node_of(written, "b1_context").input) == ["b1_probs", "b1_v_t"]
    assert list(node_of(written, "b1_scores").input) == ["b1_q_t_dequantize", "b1_k_t_dequantize"]


def test_a_product_with_one_fitted_operand_stays_float(small: Case) -> None:
    decisions = dict(small.plan.decisions)
    decisions["b0_q_t"] = replace(decisions["b0_q_t"], params=None)
    plan = replace(small.plan, decisions=decisions)
    assert "b0_scores" not in planned_products(plan, small.blockmap)
    assert list(node_of(small.written(plan), "b0_scores").input) == ["b0_q_t", "b0_k_t"]


# ---------------------------------------------------------------------------------------------- plans of another model


def renamed(plan: QuantPlan, tensor: str, **changes: Any) -> QuantPlan:
    decision = plan.decisions[tensor]
    site = replace(decision.site, **changes)
    decisions = {name: value for name, value in plan.decisions.items() if name != tensor}
    return replace(plan, decisions={**decisions, site.name: replace(decision, site=site)})


def test_a_plan_that_names_an_unknown_tensor_is_refused(small: Case) -> None:
    with pytest.raises(PlanError) as caught:
        apply_plan(small.graph, small.layers, renamed(small.plan, "b0_norm1", name="elsewhere"))
    message = "the plan names a tensor that the graph does not have (was it made for another model?)"
    assert str(caught.value) == f"elsewhere: {message}"


def test_a_plan_that_names_an_unknown_reader_is_refused(small: Case) -> None:
    with pytest.raises(PlanError, match=r"^other: the plan names a node that the graph does not have"):
        apply_plan(small.graph, small.layers, renamed(small.plan, "b0_norm1", consumers=(("other", 0),)))


def test_a_plan_with_a_bias_for_an_unknown_linear_is_refused(small: Case) -> None:
    with pytest.raises(PlanError, match=r"^nowhere: the plan has a bias for a node that the graph does not have"):
        apply_plan(small.graph, small.layers, small.plan.with_biases({"nowhere": np.zeros(5, np.float32)}))
