"""Products outside softmax attentions: which are quantized too, which stay float with a reason, and what is refused."""

import pytest
from found_text import beside, found_in

from onnxvitq.core.errors import NoBlocksFoundError
from onnxvitq.core.layers import Product

LINEAR_ATTENTION = (
    "(float[N,5,8] x) => (float[A,B,C] y) <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, float[8,6] Wo>"
    "{ q0 = MatMul(x, Wq) q = Relu(q0) k0 = MatMul(x, Wk) k = Relu(k0) v = MatMul(x, Wv)"
    " kt = Transpose<perm = [0, 2, 1]>(k) kv = MatMul(kt, v) c = MatMul(q, kv) y = MatMul(c, Wo) }"
)
SEPARABLE = (
    "(float[N,5,8] x) => (float[A,B,C] y) <float[8,1] Wi, float[8,8] Wk, float[8,8] Wv, float[8,8] Wo, int64[1] one = {1}>"
    "{ i = MatMul(x, Wi) w = Softmax<axis = 1>(i) k = MatMul(x, Wk) m = Mul(k, w) c = ReduceSum<keepdims = 1>(m, one)"
    " v0 = MatMul(x, Wv) v = Relu(v0) u = Mul(v, c) y = MatMul(u, Wo) }"
)
MIXER = (
    "(float[N,5,8] x) => (float[A,B,C] y) <float[5,7] T1, float[7,5] T2, float[8,16] C1, float[16,8] C2>"
    "{ t = Transpose<perm = [0, 2, 1]>(x) a = MatMul(t, T1) b = Relu(a) c = MatMul(b, T2)"
    " d = Transpose<perm = [0, 2, 1]>(c) e = MatMul(d, C1) f = Relu(e) y = MatMul(f, C2) }"
)


def test_both_products_of_a_linear_attention() -> None:
    blockmap = found_in(LINEAR_ATTENTION)
    assert blockmap.products == (
        Product(
            name="kv",
            left="kt",
            right="v",
            constant="",
            reason="product of two activations, not part of an attention: k: expected Softmax, got Relu",
        ),
        Product(
            name="c",
            left="q",
            right="kv",
            constant="",
            reason="product of two activations, not part of an attention: q: expected Softmax, got Relu",
        ),
    )
    assert (blockmap.attentions, blockmap.blocks, blockmap.unmatched) == ((), (), ())


def test_where_nothing_else_is_found_not_every_linear_is_the_head() -> None:
    assert {linear.role for linear in found_in(LINEAR_ATTENTION).linears} == {"linear"}


def test_a_table_of_relative_positions() -> None:
    nodes = "w = MatMul(x, W) r = Reshape(w, split) h = Transpose<perm = [0, 2, 1, 3]>(r) z = MatMul(h, table)"
    weights = "float[8,8] W, int64[4] split = {0, 0, 2, 4}, float[2,4,9] table"
    (product,) = found_in(beside(nodes, weights=weights, outputs="float[E,F,G,H] z")).products
    assert (product.name, product.left, product.right, product.constant) == ("z", "h", "table", "table")
    assert product.reason == "constant operand of shape [2, 4, 9] on the right; expected an (I, O) weight on the right"


def test_a_constant_on_the_left_of_features() -> None:
    nodes = "w = MatMul(x, W) z = MatMul(pool, w)"
    weights = "float[8,8] W, float[3,5] pool"
    (product,) = found_in(beside(nodes, weights=weights, outputs="float[E,F,G] z")).products
    assert (product.left, product.right, product.constant) == ("pool", "w", "pool")


def test_features_of_a_convolution_count_as_made_by_a_layer() -> None:
    nodes = "f = Conv(image, K) z = MatMul(f, table)"
    weights = "float[2,3,3,3] K, float[2,6,4] table"
    blockmap = found_in(beside(nodes, weights=weights, outputs="float[E,F,G,H] z", inputs="float[N,3,8,8] image"))
    assert [product.name for product in blockmap.products] == ["z"]


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (
            "z = MatMul(grid, grid)",
            "float unused = {0}",
            "product of two activations, not part of an attention: grid: expected Softmax, got a graph input",
        ),
        (
            "z = MatMul(fixed, grid)",
            "float[3,4,4] fixed",
            "constant operand of shape [3, 4, 4] on the left; expected an (I, O) weight on the right",
        ),
        (  # the size of features is none of them
            "w = MatMul(x, W) size = Shape(w) f = Cast<to = 1>(size) g = Unsqueeze(f, zero) z = MatMul(g, fixed)",
            "float[8,8] W, float[1,3,4] fixed, int64[1] zero = {0}",
            "constant operand of shape [1, 3, 4] on the right; expected an (I, O) weight on the right",
        ),
    ],
    ids=["two coordinates", "a constant and coordinates", "sizes"],
)
def test_coordinates_are_not_quantized(nodes: str, weights: str, reason: str) -> None:
    text = beside(f"{nodes} n = Size(z)", weights=weights, outputs="int64 n", inputs="float[4,4] grid")
    blockmap = found_in(text)
    assert blockmap.products == ()
    assert [(entry.name, entry.op, entry.reason) for entry in blockmap.unmatched] == [("z", "MatMul", reason)]


def test_features_with_coordinates_are_not_quantized() -> None:
    nodes = "w = MatMul(x, W) z = MatMul(w, grid)"
    text = beside(nodes, weights="float[8,8] W", outputs="float[E,F,G] z", inputs="float[8,4] grid")
    blockmap = found_in(text)
    assert blockmap.products == ()
    assert [entry.name for entry in blockmap.unmatched] == ["z"]


def test_linears_attentions_products_and_the_rest_add_up() -> None:
    nodes = (
        "w = MatMul(x, W) wt = Transpose<perm = [0, 2, 1]>(w) gram = MatMul(wt, w) c = MatMul(gram, table)"
        " other = MatMul(e, cover) route = Softmax(x) r = Size(route) z = Add(c, other)"
    )
    weights = "float[8,8] W, float[1,8,4] table, float[1,8,4] cover"
    blockmap = found_in(beside(nodes, weights=weights, outputs="float[E,F,G] z, int64 r", inputs="float[8,8] e"))
    assert [product.name for product in blockmap.products] == ["gram", "c"]
    assert [entry.name for entry in blockmap.unmatched] == ["other", "route"]
    assert (len(blockmap.linears), len(blockmap.attentions)) == (1, 1)


# ------------------------------------------------------------------------------------------------------ accepted or refused


def test_separable_attention_is_accepted() -> None:
    blockmap = found_in(SEPARABLE)
    assert (blockmap.attentions, blockmap.products) == ((), ())
    assert [linear.name for linear in blockmap.linears] == ["i", "k", "v0", "y"]
    assert [(entry.name, entry.reason) for entry in blockmap.unmatched] == [("w", "a Softmax outside an attention")]


@pytest.mark.parametrize(
    ("old", "new"),
    [("Softmax<axis = 1>(i)", "Sigmoid(i)"), ("ReduceSum<keepdims = 1>(m, one)", "ReduceMax<axes = [1]>(m)")],
)
def test_without_a_softmax_or_a_sum_it_is_none(old: str, new: str) -> None:
    with pytest.raises(NoBlocksFoundError, match="it has no product of two activations"):
        found_in(SEPARABLE.replace(old, new))


@pytest.mark.parametrize("end", ["y = MatMul(f, C2)", "g = MatMul(f, C2) y = Softmax(g)"], ids=["scores", "softmax"])
def test_a_mixer_of_tokens_is_refused(end: str) -> None:
    with pytest.raises(NoBlocksFoundError, match="nearest: it has no product of two activations"):
        found_in(MIXER.replace("y = MatMul(f, C2)", end))


def test_a_mixer_written_from_the_left_is_refused_too() -> None:
    text = MIXER.replace("t = Transpose<perm = [0, 2, 1]>(x) a = MatMul(t, T1)", "l = MatMul(x, L) a = MatMul(M1, l)")
    text = text.replace("c = MatMul(b, T2) d = Transpose<perm = [0, 2, 1]>(c)", "d = MatMul(M2, b)")
    with pytest.raises(NoBlocksFoundError, match="no attention block found"):
        found_in(text.replace("float[5,7] T1, float[7,5] T2", "float[8,8] L, float[7,5] M1, float[5,7] M2"))
