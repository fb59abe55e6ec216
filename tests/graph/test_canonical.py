"""Every pass: the forms it rewrites, the near misses it leaves alone, and that outputs stay what they were."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import canonical_channel_forms
import canonical_convolution_forms
import canonical_einsum_forms
import canonical_forms
import canonical_fused_forms
import canonical_layout_forms
import canonical_linear_forms
import canonical_packed_forms
import canonical_row_forms
import canonical_selection_forms
import onnx
import onnx_graphsurgeon as gs
import pytest
from canonical_forms import Form, NearMiss, Weights
from textgraph import difference, digest, feeds_of, graph_of, model_of, operators, proto_of, run

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.graph.canonical import PASSES, canonicalise, run_pass
from onnxvitq.graph.edit import Editor
from onnxvitq.graph.passes import constants
from onnxvitq.graph.passes.selection import pick_early
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.reading import load_model, to_graph

ROUNDING = 1e-5  # of the largest output: one rounding of a folded constant, or another order of summation
FORMS = [
    form
    for module in (
        canonical_channel_forms,
        canonical_convolution_forms,
        canonical_einsum_forms,
        canonical_forms,
        canonical_fused_forms,
        canonical_layout_forms,
        canonical_linear_forms,
        canonical_packed_forms,
        canonical_row_forms,
        canonical_selection_forms,
    )
    for group in vars(module).values()
    if isinstance(group, tuple)
    for form in group
]
NEAR_MISSES = [(form, near) for form in FORMS for near in form.near_misses]


def fused_graph_of(text: str, opset: int, weights: Weights) -> gs.Graph:
    """The graph of a text graph, which may hold operators that only onnxruntime has."""
    model = model_of(text, opset=opset, weights=weights)
    for domain in ("com.microsoft.nchwc", "com.microsoft"):
        if f" {domain}." in text:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
            break
    return to_graph(model)


def changed(text: str, near: NearMiss) -> str:
    for old, new in near.changes.items():
        assert text.count(old) >= 1, f"{old!r} is not in the form"
        text = text.replace(old, new)
    return text


def test_every_pass_has_a_form_and_two_near_misses() -> None:
    tested = {*PASSES, pick_early, canonical_row_forms.join_rows}  # the writer's own two
    assert {form.rewrite for form in FORMS} == tested
    for rewrite in tested:
        assert sum(form.rewrite is rewrite for form, _ in NEAR_MISSES) >= 2, rewrite.__name__


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.rewrite.__name__}: {form.label}")
def test_a_form_is_rewritten(form: Form) -> None:
    graph = fused_graph_of(form.text, form.opset, form.weights)
    before = proto_of(graph)
    onnx.checker.check_model(before, full_check=True)
    feeds = feeds_of(before)
    expected = run(before, feeds)

    assert run_pass(graph, form.rewrite) == form.edits
    assert operators(graph) == form.after
    assert run_pass(graph, form.rewrite) == 0
    after = proto_of(graph)
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert difference(run(after, feeds), expected) <= (0.0 if form.exact else ROUNDING)


@pytest.mark.parametrize(
    ("form", "near"),
    NEAR_MISSES,
    ids=[f"{form.rewrite.__name__}: {form.label}: {near.label}" for form, near in NEAR_MISSES],
)
def test_a_near_miss_is_left_alone(form: Form, near: NearMiss) -> None:
    graph = fused_graph_of(changed(form.text, near), form.opset, {**form.weights, **near.weights})
    onnx.checker.check_model(proto_of(graph), full_check=True)
    before = digest(graph)

    assert form.rewrite(graph) == 0
    assert digest(graph) == before


def test_what_the_reference_implementation_cannot_fold_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y) <float[4] c> { t = Gelu(c) y = Add(x, t) }", opset=20)
    with caplog.at_level("DEBUG"):
        assert constants.fold_constants(graph) == 0
    assert "Gelu 't' is not folded: RuntimeContextError: No implementation was found" in caplog.text


def test_a_pass_that_breaks_the_graph_is_named_in_the_error() -> None:
    def rename(graph: gs.Graph) -> int:
        for node in graph.nodes:
            node.name = "same"
        return 1

    graph = graph_of("(float[N,4] x) => (float[A,B] y) { r = Relu(x) y = Exp(r) }")
    with pytest.raises(InvalidGraphError, match=r"^pass rename: two nodes are called 'same'$"):
        run_pass(graph, rename)


def test_a_pass_from_outside_the_package_runs_like_any_other() -> None:
    def remove_double_negation(graph: gs.Graph) -> int:
        """Neg(Neg(x)) -> x."""
        edit, count = Editor(graph), 0
        for node in list(graph.nodes):
            inner = producer(node.inputs[0]) if node.op == "Neg" else None
            if inner is not None and inner.op == "Neg":
                edit.replace(node, inner.inputs[0])
                count += 1
        return count

    graph = graph_of("(float[N,4] x) => (float[A,B] y) { a = Relu(x) b = Neg(a) c = Neg(b) y = Exp(c) }")
    before = proto_of(graph)
    feeds = feeds_of(before)
    assert run_pass(graph, remove_double_negation) == 1
    assert operators(graph) == "Relu Exp"
    assert graph.tensors()["a"].shape == ["N", 4]
    assert run_pass(graph, remove_double_negation) == 0
    assert difference(run(proto_of(graph), feeds), run(before, feeds)) == 0.0


def test_canonicalise_counts_the_edits_of_every_pass_and_comes_to_an_end() -> None:
    # The scale can go into the projection only after the Identity is gone and the Gemm is a product.
    graph = graph_of(
        "(float[N,4] x) => (float[A,B] y) <float[4,6] W, float[6] b, float c = {0.3}>"
        "{ g = Gemm(x, W, b) i = Identity(g) y = Mul(i, c) }"
    )
    edits = canonicalise(graph)
    assert list(edits) == [rewrite.__name__ for rewrite in PASSES]
    assert {name: count for name, count in edits.items() if count} == {
        "gemm_to_matmul": 1,
        "remove_no_ops": 1,
        "fold_scalar_scales": 1,
    }
    assert operators(graph) == "MatMul Add"
    assert not any(canonicalise(graph).values())


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_exported_vit_becomes_linears_and_products(
    export_vit: Callable[[str, bool], onnx.ModelProto], tmp_path: Path, exporter: str, dynamic: bool
) -> None:
    original = export_vit(exporter, dynamic)
    onnx.save(original, tmp_path / "vit.onnx")
    graph = load_model(tmp_path / "vit.onnx").graph
    canonicalise(graph)
    counts = Counter(node.op for node in graph.nodes)
    assert counts["MatMul"] == 1 + 2 * 8 + 1  # patches; q, k, v, two products, proj, fc1, fc2 a block; head
    assert counts["Softmax"] == 2
    assert not counts.keys() & {"Gemm", "Conv", "Identity", "IsNaN", "Split", "Attention"}
    assert not any(canonicalise(graph).values())

    after = proto_of(graph)
    feeds = feeds_of(original, batch=3)
    assert feeds["image"].shape[0] == (3 if dynamic else 1)  # exported at 2
    assert difference(run(after, feeds), run(original, feeds)) <= ROUNDING
    for values in ("input", "output"):
        assert [v.name for v in getattr(after.graph, values)] == [v.name for v in getattr(original.graph, values)]


@pytest.mark.parametrize(("opset", "mask"), [(23, ""), (23, "float"), (23, "bool")])
def test_an_attention_operator_becomes_two_products_and_keeps_its_scale(opset: int, mask: str) -> None:
    shape, inputs, given = "<float[8,24] W, float[24] b", "(float[N,5,8] x", "q, k, v"
    if mask:
        inputs, given = f"{inputs}, {mask}[5,5] m", "q, k, v, m"
    graph = graph_of(
        f"{inputs}) => (float[A,B,C] y) {shape}, int64[3] w = {{8, 8, 8}}>"
        "{ p = MatMul(x, W) a = Add(p, b) q, k, v = Split<axis = -1>(a, w)"
        f" y = Attention<q_num_heads = 2, kv_num_heads = 2, scale = 0.4>({given}) }}",
        opset=opset,
    )
    before = proto_of(graph)
    feeds = feeds_of(before)
    canonicalise(graph)
    assert Counter(node.op for node in graph.nodes)["MatMul"] == 5
    assert "Mul" not in {node.op for node in graph.nodes}  # the scale went into the query's projection
    assert difference(run(proto_of(graph), feeds), run(before, feeds)) <= ROUNDING
