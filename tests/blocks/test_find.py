"""What is found in whole graphs, what each part is called, and that every node that multiplies is accounted for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from found_text import assert_accounted, beside, found_in
from textgraph import graph_of
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.errors import NoBlocksFoundError
from onnxvitq.core.layers import Attention, Block, BlockMap, Linear, Mlp, Norm, Unmatched
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import load_model

SELF = beside()


@pytest.fixture(scope="module")
def small() -> BlockMap:
    """What is found in a transformer of two blocks with a dynamic batch and 17 tokens."""
    graph = graph_of(transformer(tokens="17"))
    canonicalise(graph)
    blockmap = find_blocks(graph, "small.onnx")
    assert_accounted(graph, blockmap)
    return blockmap


def test_an_attention_is_described_whole(small: BlockMap) -> None:
    assert small.attentions[0] == Attention(
        name="b0_probs",
        block=0,
        query="b0_q_t",
        key="b0_k_t",
        probs="b0_probs",
        value="b0_v_t",
        scores_node="b0_scores",
        softmax_node="b0_probs",
        context_node="b0_context",
        probs_first=True,
        heads=2,
        tokens=17,
        width=16,
        query_linear="b0_q",
        key_linear="b0_k",
        value_linear="b0_v",
        proj_linear="b0_proj",
        direct=True,
    )
    assert small.attentions[1].block == 1


def test_a_linear_is_described_whole(small: BlockMap) -> None:
    assert small.linear("b1_fc1") == Linear(
        name="b1_fc1",
        role="block1.mlp.fc1",
        kind="linear",
        input="b1_norm2",
        weight="b1_fc1_W",
        bias="b1_fc1_b",
        bias_node="b1_fc1_out",
        output="b1_fc1_out",
        in_features=32,
        out_features=64,
    )


def test_blocks_norms_and_roles(small: BlockMap) -> None:
    assert small.blocks == tuple(
        Block(
            index=i,
            attention=f"b{i}_probs",
            mlps=(Mlp(block=i, fc1=f"b{i}_fc1", fc2=f"b{i}_fc2", activation="gelu_half_last"),),
        )
        for i in (0, 1)
    )
    parts = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert [linear.role for linear in small.linears] == [f"block{i}.{part}" for i in (0, 1) for part in parts] + [
        "head"
    ]
    assert [norm.name for norm in small.norms] == ["b0_norm1", "b0_norm2", "b1_norm1", "b1_norm2", "norm"]
    assert small.norms[0] == Norm(
        name="b0_norm1",
        form="op",
        input="tokens",
        output="b0_norm1",
        gamma="b0_norm1_g",
        beta="b0_norm1_b",
        only_linears=True,
    )
    assert small.unmatched == ()


def test_sizes_that_are_not_known_are_none() -> None:
    attention = found_in(transformer()).attentions[0]
    assert (attention.heads, attention.tokens, attention.width) == (2, None, 16)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_exported_vit_is_found_whole(
    export_vit: Callable[[str, bool], onnx.ModelProto], tmp_path: Path, exporter: str, dynamic: bool
) -> None:
    onnx.save(export_vit(exporter, dynamic), tmp_path / "vit.onnx")
    graph = load_model(tmp_path / "vit.onnx").graph
    canonicalise(graph)
    blockmap = find_blocks(graph, "vit.onnx")
    assert_accounted(graph, blockmap)
    parts = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    roles = Counter(linear.role for linear in blockmap.linears)
    assert roles == Counter(["patch_embed", "head", *(f"block{i}.{part}" for i in (0, 1) for part in parts)])
    assert [linear.kind for linear in blockmap.linears].count("patch_embedding") == 1
    assert all(linear.bias for linear in blockmap.linears)
    assert [(a.heads, a.tokens, a.width, a.probs_first) for a in blockmap.attentions] == [(2, 17, 16, True)] * 2
    assert len(blockmap.norms) == 5
    assert blockmap.unmatched == ()


# --------------------------------------------------------------------------------------------------------- attentions


def test_cross_attention_takes_keys_and_values_from_elsewhere() -> None:
    blockmap = found_in(
        "(float[N,5,8] x, float[N,7,8] memory) => (float[A,B,C] y) <float[8,8] Q, float[8,8] K, float[8,8] V>"
        "{ q = MatMul(x, Q) k = MatMul(memory, K) v = MatMul(memory, V) kt = Transpose<perm = [0, 2, 1]>(k)"
        " s = MatMul(q, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"
    )
    (attention,) = blockmap.attentions
    assert (attention.query_linear, attention.key_linear, attention.value_linear) == ("q", "k", "v")
    assert (attention.heads, attention.tokens, attention.width) == (None, 7, 8)
    assert [blockmap.linear(name).input for name in "qkv"] == ["x", "memory", "memory"]
    assert attention.proj_linear == ""


def test_operands_that_come_from_no_linear_have_none() -> None:
    (attention,) = found_in(SELF).attentions
    assert (attention.query_linear, attention.key_linear, attention.value_linear, attention.proj_linear) == ("",) * 4


def test_attention_over_channels_has_the_value_first() -> None:
    blockmap = found_in(
        "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,3,5] v) => (float[A,B,C,D] y)"
        "{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(v, p) }"
    )
    (attention,) = blockmap.attentions
    assert not attention.probs_first
    assert (attention.value, attention.probs, attention.tokens) == ("v", "p", 5)


def test_the_last_axis_may_be_named_by_its_number() -> None:
    assert len(found_in(SELF.replace("axis = -1", "axis = 3")).attentions) == 1


def test_a_softmax_over_another_axis_is_no_attention() -> None:
    with pytest.raises(NoBlocksFoundError, match="y: the Softmax is not over the last axis"):
        found_in(SELF.replace("axis = -1", "axis = 2"))


def test_products_that_share_a_softmax_are_one_attention_and_a_miss() -> None:
    blockmap = found_in(beside("z = MatMul(probs, v)", outputs="float[E,F,G,H] z"))
    assert [attention.context_node for attention in blockmap.attentions] == ["y"]
    reason = (
        "product of two activations, not part of an attention: its scores or its Softmax belong to another attention"
    )
    assert blockmap.unmatched == (Unmatched(name="z", op="MatMul", reason=reason),)


def test_softmaxes_that_share_their_scores_are_one_attention_and_misses() -> None:
    nodes = "masked = Add(scores, mask) other = Softmax<axis = -1>(masked) z = MatMul(other, v)"
    blockmap = found_in(beside(nodes, weights="float[5,5] mask", outputs="float[E,F,G,H] z"))
    assert len(blockmap.attentions) == 1
    assert [(unmatched.name, unmatched.op) for unmatched in blockmap.unmatched] == [
        ("other", "Softmax"),
        ("z", "MatMul"),
    ]


# ------------------------------------------------------------------------------------------------------------ linears


@pytest.mark.parametrize("bias", ["float[6] b", "float[1,6] b", "float[1,1,6] b"])
def test_a_row_is_a_bias(bias: str) -> None:
    text = beside("p = MatMul(x, W) z = Add(b, p)", weights=f"float[8,6] W, {bias}", outputs="float[E,F,G] z")
    (linear,) = found_in(text).linears
    assert (linear.bias, linear.bias_node, linear.output) == ("b", "z", "z")


@pytest.mark.parametrize(
    ("weights", "nodes"),
    [
        ("float[8,6] W, float[5,6] b", "p = MatMul(x, W) z = Add(p, b)"),  # positions
        ("float[8,6] W, float b = {1}", "p = MatMul(x, W) z = Add(p, b)"),  # one number
        ("float[8,1] W, float[6] b", "p = MatMul(x, W) z = Add(p, b)"),  # widens the product
        ("float[8,6] W, float[6] b", "p = MatMul(x, W) z = Sub(p, b)"),
        ("float[8,6] W, float[6] b", "p = MatMul(x, W) r = Relu(p) a = Add(p, b) z = Add(a, r)"),  # read twice
        ("float[8,8] W", "p = MatMul(x, W) z = Add(p, x)"),  # a residual
    ],
)
def test_what_is_no_bias(weights: str, nodes: str) -> None:
    (linear,) = found_in(beside(nodes, weights=weights, outputs="float[E,F,G] z")).linears
    assert (linear.bias, linear.bias_node, linear.output) == ("", "", "p")


def test_an_output_has_no_bias_behind_it() -> None:
    text = beside(
        "p = MatMul(x, W) z = Add(p, b)", weights="float[8,6] W, float[6] b", outputs="float[E,F,G] p, float[H,I,J] z"
    )
    (linear,) = found_in(text).linears
    assert (linear.bias, linear.output) == ("", "p")


def test_linears_behind_and_before_everything_else() -> None:
    text = (
        "(float[N,5,8] x) => (float[A,B] y) <float[8,8] E, float[8,8] Q, float[8,6] H, int64 zero = {0}>"
        "{ embed = MatMul(x, E) q = MatMul(embed, Q) t = Transpose<perm = [0, 2, 1]>(embed) s = MatMul(q, t)"
        " p = Softmax<axis = -1>(s) c = MatMul(p, embed) first = Gather<axis = 1>(c, zero) y = MatMul(first, H) }"
    )
    blockmap = found_in(text)
    assert {linear.name: linear.role for linear in blockmap.linears} == {
        "embed": "block0.attn.k",  # keys and values both come straight from it
        "q": "block0.attn.q",
        "y": "head",
    }
    early = found_in(
        text.replace("MatMul(x, E)", "MatMul(w, E)").replace("{ embed", "{ u = MatMul(x, E) w = Softsign(u) embed")
    )
    assert {linear.name: linear.role for linear in early.linears}["u"] == "linear"


def test_only_patches_of_the_image_are_a_patch_embedding() -> None:
    nodes = "a = Reshape(image, g) t = Transpose<perm = [0, 2, 4, 1, 3, 5]>(a) f = Reshape(t, s) z = MatMul(f, W)"
    weights = "float[12,6] W, int64[6] g = {-1, 3, 2, 2, 2, 2}, int64[3] s = {-1, 4, 12}"
    text = beside(nodes, weights=weights, outputs="float[E,F,G] z", inputs="float[N,3,4,4] image")
    assert [(linear.kind, linear.role) for linear in found_in(text).linears] == [("patch_embedding", "patch_embed")]
    inside = text.replace("a = Reshape(image, g)", "r = Relu(image) a = Reshape(r, g)")
    assert [linear.kind for linear in found_in(inside).linears] == ["linear"]  # merged patches, as in Swin


def two_attentions(end: str) -> str:
    """Linears with an activation between them before, between and after two attentions."""
    mlp = "{0} = MatMul({1}, A) {0}_r = Relu({0}) {0}_2 = MatMul({0}_r, B) "
    attention = (
        "t{0} = Transpose<perm = [0, 2, 1]>({1}) s{0} = MatMul({1}, t{0})"
        " p{0} = Softmax<axis = -1>(s{0}) c{0} = MatMul(p{0}, {1}) "
    )
    return (
        "(float[N,5,8] x) => (float[A,B,C] y) <float[8,16] A, float[16,8] B> {"
        + mlp.format("first", "x")
        + attention.format(0, "first_2")
        + mlp.format("second", "c0")
        + mlp.format("third", "second_2")
        + attention.format(1, "third_2")
        + mlp.format("fourth", "c1")
        + mlp.format("head", "fourth_2")
        + end
    )


def test_mlps_belong_to_the_attention_before_them() -> None:
    blockmap = found_in(two_attentions("y = Add(head_2, c1) }"))
    assert [[mlp.fc1 for mlp in block.mlps] for block in blockmap.blocks] == [
        ["first", "second", "third"],
        ["fourth", "head"],
    ]
    assert blockmap.blocks[0].mlps[0] == Mlp(block=0, fc1="first", fc2="first_2", activation="relu")


def test_linears_into_which_nothing_is_mixed_any_more_are_a_head() -> None:
    blockmap = found_in(two_attentions("y = Softmax<axis = -1>(head_2) }"))
    assert [[mlp.fc1 for mlp in block.mlps] for block in blockmap.blocks] == [["first", "second", "third"], []]
    roles = {linear.name: linear.role for linear in blockmap.linears}
    assert {name for name, role in roles.items() if role == "head"} == {"fourth_2", "head", "head_2"}


DECOMPOSED = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps)"
    " r = Sqrt(e) n = Div(d, r) w = Mul(n, g) z = Add(w, b)"
)


def test_decomposed_norms_are_found_by_their_last_node_alone() -> None:
    text = beside(DECOMPOSED, weights="float[8] g, float[8] b, float eps = {1e-6}", outputs="float[E,F,G] z")
    norm = Norm(name="z", form="decomposed", input="x", output="z", gamma="g", beta="b", only_linears=False)
    assert found_in(text).norms == (norm,)


def test_a_root_mean_square_norm_has_no_beta() -> None:
    nodes = DECOMPOSED.replace("m = ReduceMean<axes = [-1]>(x) d = Sub(x, m)", "d = Softsign(x)")
    text = beside(nodes, weights="float[8] g, float[8] b, float eps = {1e-6}", outputs="float[E,F,G] z")
    norm = Norm(name="w", form="rms", input="d", output="w", gamma="g", beta="", only_linears=False)
    assert found_in(text).norms == (norm,)


# -------------------------------------------------------------------------------------------- what is left, and why


@pytest.mark.parametrize(
    ("op", "nodes", "weights", "inputs", "reason"),
    [
        (
            "MatMul",
            "z = MatMul(W, x)",
            "float[5,5] W",
            "",
            "constant operand of shape [5, 5] on the left; expected an (I, O) weight on the right",
        ),
        (
            "MatMul",
            "z = MatMul(q, W)",
            "float[2,4,6] W",
            "",
            "constant operand of shape [2, 4, 6] on the right; expected an (I, O)",
        ),
        (
            "MatMul",
            "z = MatMul(q, k)",
            "",
            "",
            "product of two activations, not part of an attention: q: expected Softmax, got a graph input",
        ),
        (
            "Gemm",
            "z = Gemm(m, W)",
            "",
            "float[8,6] W, float[N,8] m",
            "its weight or bias is computed, or its input is transposed",
        ),
        (
            "Conv",
            "z = Conv(image, W)",
            "float[6,3,3,3] W",
            "float[N,3,8,8] image",
            "a convolution over neighbouring pixels: no patch embedding (kernel = stride), not pointwise",
        ),
        (
            "ConvTranspose",
            "z = ConvTranspose(image, W)",
            "float[3,6,2,2] W",
            "float[N,3,8,8] image",
            "a transposed convolution",
        ),
        (
            "Einsum",
            'z = Einsum<equation = "nhtd,nhds->nhts">(q, k)',
            "",
            "",
            "an Einsum that is no product of two matrices",
        ),
        ("Softmax", "z = Softmax(x)", "", "", "a Softmax outside an attention"),
        (
            "Attention",
            "z = Attention<is_causal = 1>(q, v, v)",
            "",
            "",
            "causal, grouped-query, soft-capped, or with a cache",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_what_is_left_has_a_reason(op: str, nodes: str, weights: str, inputs: str, reason: str) -> None:
    text = beside(f"{nodes} w = Size(z)", weights=weights, outputs="int64 w", inputs=inputs)
    (unmatched,) = found_in(text, opset=23).unmatched
    assert (unmatched.name, unmatched.op) == ("z", op)
    assert reason in unmatched.reason


def test_bodies_are_accounted_for_however_deep() -> None:
    inner = (
        "If (c) <then_branch = ta () => (float[A,B,C] ya) { ya = MatMul(x, V) },"
        " else_branch = ea () => (float[A,B,C] yb) { yb = Relu(x) }>"
    )
    nodes = (
        "z = If (c) <then_branch = t () => (float[A,B,C] yt) { p = MatMul(x, W) yt = Softmax(p) },"
        f" else_branch = e () => (float[A,B,C] ye) {{ ye = {inner} }}>"
    )
    text = beside(nodes, weights="float[8,8] W, float[8,8] V", outputs="float[E,F,G] z", inputs="bool c")
    blockmap = found_in(text)
    assert [(unmatched.op, unmatched.reason) for unmatched in blockmap.unmatched] == [
        (op, "inside the body of If 'z'") for op in ("MatMul", "Softmax", "MatMul")
    ]
    assert blockmap.linears == ()


# ---------------------------------------------------------------------------------------------------- nothing found


def test_a_graph_without_products_says_so() -> None:
    with pytest.raises(NoBlocksFoundError) as caught:
        found_in("(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[6,3,3,3] W> { c = Conv(x, W) y = Relu(c) }")
    problem = "no attention block found; nearest: it has no product of two activations"
    assert str(caught.value) == f"test.onnx: {problem} (is it a Vision Transformer, unfused?)"


def test_the_nearest_misses_are_listed_deepest_first() -> None:
    with pytest.raises(NoBlocksFoundError) as caught:
        found_in(
            "(float[N,5,5] x, float[N,5,5] z) => (float[A,B,C] a, float[D,E,F] b, float[G,H,I] c, float[J,K,L] d)"
            "{ a = MatMul(x, z)"
            " s1 = Softmax(x) b = MatMul(s1, z)"
            " m = Add(x, z) n = Add(m, z) s2 = Softmax(n) c = MatMul(s2, z)"
            " r = Relu(x) d = MatMul(r, z) }"
        )
    listed = str(caught.value).split("nearest: ")[1].removesuffix(" (is it a Vision Transformer, unfused?)").split("; ")
    assert listed == [
        "c: x: expected MatMul, got a graph input",
        "b: x: expected MatMul, got a graph input",
        "a: x: expected Softmax, got a graph input",
    ]
