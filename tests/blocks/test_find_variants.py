"""Attentions, projections and MLPs of architectures that are not the plain Vision Transformer."""

import pytest
from found_text import beside, found_in

from onnxvitq.core.layers import BlockMap, Mlp

MIX = (
    "{name}_turned = Transpose<perm = [0, 2, 3, 1]>({source}) {name} = MatMul({name}_turned, {name}_W)"
    " {name}_out = Add({name}, {name}_b) {name}_back = Transpose<perm = [0, 3, 1, 2]>({name}_out) "
)
PROJECTIONS = "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv)"
WEIGHTS = "float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, int64[4] split = {0, 0, 2, 4}"


def projected(query: str, key: str, weights: str = "", *, opset: int = 17) -> BlockMap:
    """A self-attention whose query and key are made of ``q_s`` and ``k_s``, the projections cut into two heads."""
    text = (
        f"(float[N,5,8] x) => (float[A,B,C,D] y) <{WEIGHTS}{weights}> {{ {PROJECTIONS}"
        " q_r = Reshape(q, split) k_r = Reshape(k, split) v_r = Reshape(v, split)"
        " q_s = Transpose<perm = [0, 2, 1, 3]>(q_r) k_s = Transpose<perm = [0, 2, 1, 3]>(k_r)"
        f" v_s = Transpose<perm = [0, 2, 1, 3]>(v_r) {query} {key} kt = Transpose<perm = [0, 1, 3, 2]>(k_ready)"
        " s = MatMul(q_ready, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v_s) }"
    )
    return found_in(text, opset=opset)


def assert_projections_found(blockmap: BlockMap) -> None:
    (attention,) = blockmap.attentions
    assert (attention.query_linear, attention.key_linear, attention.value_linear) == ("q", "k", "v")
    roles = {linear.name: linear.role for linear in blockmap.linears}
    assert roles == {"q": "block0.attn.q", "k": "block0.attn.k", "v": "block0.attn.v"}


# --------------------------------------------------------------------------------------------------- mixed by a matrix


def test_heads_that_talk_before_and_after_the_softmax() -> None:
    text = (
        "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v) => (float[A,B,C,D] y)"
        " <float[2,2] before_W, float[2] before_b, float[2,2] after_W, float[2] after_b>"
        f" {{ s = MatMul(q, k) {MIX.format(name='before', source='s')} p = Softmax<axis = -1>(before_back)"
        f" {MIX.format(name='after', source='p')} y = MatMul(after_back, v) }}"
    )
    blockmap = found_in(text)
    (attention,) = blockmap.attentions
    assert (attention.scores_node, attention.softmax_node, attention.context_node) == ("s", "p", "y")
    assert (attention.query, attention.key, attention.probs, attention.value) == ("q", "k", "after_back", "v")
    assert [(linear.name, linear.bias, linear.role) for linear in blockmap.linears] == [
        ("before", "before_b", "linear"),  # linears of two features; no heads of the model
        ("after", "after_b", "linear"),
    ]


def test_a_router_behind_an_attention_is_not_its_softmax() -> None:
    nodes = (
        "c = Transpose<perm = [0, 2, 1, 3]>(y) f = Reshape(c, join) r = MatMul(f, R) route = Softmax<axis = -1>(r)"
        " e = MatMul(x, E) et = Reshape(e, experts) z = MatMul(route, et)"
    )
    weights = "int64[3] join = {0, 0, 8}, float[8,3] R, float[8,6] E, int64[3] experts = {0, 3, -1}"
    blockmap = found_in(beside(nodes, weights=weights, outputs="float[E,F,G] z"))
    assert [attention.softmax_node for attention in blockmap.attentions] == ["probs"]
    assert [(unmatched.name, unmatched.reason) for unmatched in blockmap.unmatched] == [
        ("route", "a Softmax outside an attention")
    ]
    (product,) = blockmap.products
    assert product.name == "z"
    assert product.reason.endswith("the Softmax is not of the product's shape")


def test_a_learned_query_is_an_operand_of_its_attention() -> None:
    text = (
        "(float[N,5,8] x) => (float[A,B,C,D] y) <float[1,2,1,4] latent, float[8,8] Wk, float[8,8] Wv,"
        " int64[4] split = {0, 0, 2, 4}> { k = MatMul(x, Wk) v = MatMul(x, Wv) kr = Reshape(k, split)"
        " kt = Transpose<perm = [0, 2, 3, 1]>(kr) vr = Reshape(v, split) vt = Transpose<perm = [0, 2, 1, 3]>(vr)"
        " s = MatMul(latent, kt) p = Softmax<axis = -1>(s) y = MatMul(p, vt) }"
    )
    blockmap = found_in(text)
    (attention,) = blockmap.attentions
    assert (attention.query, attention.query_linear, attention.key_linear) == ("latent", "", "k")
    assert (attention.heads, attention.tokens, attention.width) == (2, 5, 4)
    assert (blockmap.products, blockmap.unmatched) == ((), ())


def test_heads_mixed_from_the_left_are_no_learned_query() -> None:
    text = (
        "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v) => (float[A,B,C,D] y)"
        " <float[2,2] H, int64[3] flat = {0, 2, 25}, int64[4] maps = {0, 2, 5, 5}>"
        " { s = MatMul(q, k) f = Reshape(s, flat) m = MatMul(H, f) u = Reshape(m, maps) p = Softmax<axis = -1>(u)"
        " y = MatMul(p, v) }"
    )
    blockmap = found_in(text)
    assert [attention.scores_node for attention in blockmap.attentions] == ["s"]
    assert [entry.name for entry in blockmap.unmatched] == ["m"]


def test_heads_mixed_by_a_computed_matrix_are_not_seen_through() -> None:
    text = (
        "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v, float[2,2] mix) => (float[A,B,C,D] y) <float c = {1}>"
        " { s = MatMul(q, k) t = Transpose<perm = [0, 2, 3, 1]>(s) m = MatMul(t, mix)"
        " u = Transpose<perm = [0, 3, 1, 2]>(m) p = Softmax<axis = -1>(u) z = MatMul(p, v)"
        " s2 = MatMul(z, k) p2 = Softmax<axis = -1>(s2) y = MatMul(p2, v) }"
    )
    blockmap = found_in(text)
    assert [attention.softmax_node for attention in blockmap.attentions] == ["p2"]
    assert {entry.name for entry in blockmap.unmatched} == {"s", "m", "p", "z"}


# --------------------------------------------------------------------------- from a projection to the attention's product


def test_rotary_embedding() -> None:
    def turned(name: str) -> str:
        return (
            f"{name}_a, {name}_b = Split<axis = -1>({name}_s, halves) {name}_n = Neg({name}_b)"
            f" {name}_t = Concat<axis = -1>({name}_n, {name}_a) {name}_c = Mul({name}_s, cos)"
            f" {name}_d = Mul({name}_t, sin) {name}_ready = Add({name}_c, {name}_d)"
        )

    weights = ", float[5,4] cos, float[5,4] sin, int64[2] halves = {2, 2}"
    assert_projections_found(projected(turned("q"), turned("k"), weights))


@pytest.mark.parametrize(
    ("op", "opset"),
    [("LayerNormalization({0}_s, g, b)", 17), ("RMSNormalization({0}_s, g)", 23), ("LpNormalization({0}_s)", 17)],
    ids=["layer", "rms", "length"],
)
def test_normalised_queries_and_keys(op: str, opset: int) -> None:
    query, key = (f"{name}_ready = {op.format(name)}" for name in "qk")
    assert_projections_found(projected(query, key, ", float[4] g, float[4] b", opset=opset))


def test_pooled_queries() -> None:
    def pooled(name: str, op: str) -> str:
        return (
            f"{name}_i = Reshape({name}_s, image) {name}_p = {op} {name}_l = Reshape({name}_p, tokens)"
            f" {name}_o = Transpose<perm = [0, 1, 3, 2]>({name}_l) {name}_ready = LayerNormalization({name}_o, g, b)"
        )

    weights = (
        ", float[4,1,1,3] K, float[4] g, float[4] b, int64[4] image = {-1, 4, 1, 5}, int64[4] tokens = {-1, 2, 4, 5}"
    )
    conv = "Conv<group = 4, pads = [0, 1, 0, 1]>(q_i, K)"
    query = pooled("q", conv)
    key = pooled("k", "MaxPool<kernel_shape = [1, 3], pads = [0, 1, 0, 1]>(k_i)")
    blockmap = projected(query, key, weights)
    assert_projections_found(blockmap)
    assert [(entry.name, entry.op) for entry in blockmap.unmatched] == [("q_p", "Conv")]


def test_an_operand_of_two_projections_has_no_single_one() -> None:
    blockmap = projected("q_ready = Add(q_s, k_s)", "k_ready = Identity(k_s)")
    assert (blockmap.attentions[0].query_linear, blockmap.attentions[0].key_linear) == ("", "k")


def test_an_operand_behind_a_nonlinearity_has_none() -> None:
    blockmap = projected("q_ready = Softsign(q_s)", "k_ready = Identity(k_s)")
    assert (blockmap.attentions[0].query_linear, blockmap.attentions[0].key_linear) == ("", "k")
    assert blockmap.linear("q").role == "linear"


def test_one_linear_for_all_three_is_called_qkv() -> None:
    blockmap = found_in(
        "(float[N,5,8] x) => (float[A,B,C] y) <float[8,24] W, float[8,6] H, int64[3] sizes = {8, 8, 8}>"
        "{ w = MatMul(x, W) q, k, v = Split<axis = -1>(w, sizes) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t)"
        " p = Softmax<axis = -1>(s) c = MatMul(p, v) y = MatMul(c, H) }"
    )
    assert {linear.name: linear.role for linear in blockmap.linears} == {
        "w": "block0.attn.qkv",
        "y": "block0.attn.proj",
    }


def test_the_projection_behind_a_gate_is_found() -> None:
    nodes = (
        "c = Transpose<perm = [0, 2, 1, 3]>(y) f = Reshape(c, join) l = MatMul(x, L) g = Sigmoid(l) m = Mul(f, g)"
        " n = LayerNormalization(m, gamma, beta) z = MatMul(n, W)"
    )
    weights = "int64[3] join = {0, 0, 8}, float[8,8] L, float[8,6] W, float[8] gamma, float[8] beta"
    blockmap = found_in(beside(nodes, weights=weights, outputs="float[E,F,G] z"))
    assert blockmap.attentions[0].proj_linear == "z"
    assert blockmap.linear("z").role == "block0.attn.proj"


# ---------------------------------------------------------------------------------------------------------------- MLPs


def mlps_of(nodes: str, weights: str, opset: int = 20) -> BlockMap:
    """Found where z goes into the residual stream."""
    nodes += " residual = Add(z, x)"
    return found_in(beside(nodes, weights=weights, outputs="float[E,F,G] residual"), opset=opset)


def test_a_gated_mlp_of_three_linears() -> None:
    nodes = (
        "g = MatMul(x, G) u = MatMul(x, U) s = Sigmoid(g) a = Mul(g, s) h = Mul(a, u)"
        " n = LayerNormalization(h, gamma, beta) z = MatMul(n, D)"
    )
    weights = "float[8,12] G, float[8,12] U, float[12,8] D, float[12] gamma, float[12] beta"
    blockmap = mlps_of(nodes, weights)
    assert blockmap.blocks[0].mlps == (Mlp(block=0, fc1="g", fc2="z", activation="silu", gate="u"),)
    assert {linear.name: linear.role for linear in blockmap.linears} == {
        "g": "block0.mlp.fc1",
        "u": "block0.mlp.gate",
        "z": "block0.mlp.fc2",
    }


def test_a_packed_gated_mlp_has_one_first_linear() -> None:
    nodes = "w = MatMul(x, W) a, b = Split<axis = -1>(w, sizes) g = Gelu(a) h = Mul(b, g) z = MatMul(h, D)"
    blockmap = mlps_of(nodes, "float[8,24] W, float[12,8] D, int64[2] sizes = {12, 12}")
    assert blockmap.blocks[0].mlps == (Mlp(block=0, fc1="w", fc2="z", activation="gelu_op"),)
    assert blockmap.linear("w").role == "block0.mlp.fc1"


def test_an_mlp_through_a_depthwise_convolution() -> None:
    nodes = (
        "u = MatMul(x, U) t = Transpose<perm = [0, 2, 1]>(u) i = Reshape(t, image)"
        " d = Conv<group = 12, pads = [0, 1, 0, 1]>(i, K) o = Reshape(d, row) b = Transpose<perm = [0, 2, 1]>(o)"
        " a = Gelu(b) z = MatMul(a, D)"
    )
    weights = (
        "float[8,12] U, float[12,8] D, float[12,1,1,3] K, int64[4] image = {0, 12, 1, 5}, int64[3] row = {0, 12, 5}"
    )
    blockmap = mlps_of(nodes, weights)
    assert blockmap.blocks[0].mlps == (Mlp(block=0, fc1="u", fc2="z", activation="gelu_op"),)
    assert [entry.op for entry in blockmap.unmatched] == ["Conv"]


@pytest.mark.parametrize(
    "nodes",
    [
        "u = MatMul(x, U) a = Softsign(u) z = MatMul(a, D)",  # no activation of the list
        "a = Gelu(x) z = MatMul(a, D8)",  # of no linear
        "u = MatMul(x, U) a = Gelu(u) m = ReduceMean(a, one) z = MatMul(m, D)",  # other tokens between
    ],
)
def test_what_is_no_mlp(nodes: str) -> None:
    weights = "float[8,12] U, float[12,8] D, float[8,8] D8, int64[1] one = {1}"
    assert mlps_of(nodes, weights).blocks[0].mlps == ()
