"""Questions about found layers: the edges of a network, the layers outside blocks, the operands of products."""

from onnxvitq.core.layers import Attention, BlockMap, Linear, Product, edges, operand_sites, outer_linears, products


def linear(name: str, role: str, *, patches: bool = False) -> Linear:
    return Linear(
        name=name,
        role=role,
        kind="patch_embedding" if patches else "linear",
        input=f"{name}_x",
        weight=f"{name}_w",
        bias="",
        bias_node="",
        output=name,
        in_features=4,
        out_features=4,
    )


def attention(*, probs_first: bool) -> Attention:
    return Attention(
        name="softmax",
        block=0,
        query="q",
        key="k",
        probs="p",
        value="v",
        scores_node="qk",
        softmax_node="softmax",
        context_node="pv",
        probs_first=probs_first,
        heads=2,
        tokens=5,
        width=4,
    )


def found(*linears: Linear, probs_first: bool = True, others: tuple[Product, ...] = ()) -> BlockMap:
    return BlockMap(
        blocks=(),
        attentions=(attention(probs_first=probs_first),),
        linears=linears,
        norms=(),
        unmatched=(),
        products=others,
    )


def test_the_edges_are_patch_embedding_and_head() -> None:
    patches, query, head = linear("p", "patch_embed", patches=True), linear("q", "block0.attn.q"), linear("h", "head")
    assert edges(found(patches, query, head)) == ("p", "h")
    assert edges(found(patches, query)) == ("p",)  # the last linear layer is in a block
    assert edges(found(linear("stem", "linear"), query, head)) == ("stem", "h")


def test_outer_linears_are_before_the_first_attention_and_between_blocks() -> None:
    layers = (
        linear("p", "patch_embed", patches=True),
        linear("mlp", "block0.mlp.fc1"),  # of a convolutional stage: the MLP lies before the first attention
        linear("q", "block0.attn.q"),
        linear("between", "linear"),
        linear("proj", "block0.attn.proj"),
        linear("h", "head"),
    )
    assert [layer.name for layer in outer_linears(found(*layers))] == ["mlp", "between"]


def test_the_four_operands_of_an_attention() -> None:
    assert operand_sites(attention(probs_first=True)) == (
        ("qk", 0, "q", "query"),
        ("qk", 1, "k", "key"),
        ("pv", 0, "p", "probs"),
        ("pv", 1, "v", "value"),
    )
    assert operand_sites(attention(probs_first=False))[2:] == (("pv", 1, "p", "probs"), ("pv", 0, "v", "value"))


def test_products_with_their_operands_in_order() -> None:
    other = Product(name="gram", left="a", right="b", constant="", reason="")
    assert dict(products(found(others=(other,)))) == {"qk": ("q", "k"), "pv": ("p", "v"), "gram": ("a", "b")}
    assert dict(products(found(probs_first=False)))["pv"] == ("v", "p")


def test_a_linear_layer_by_name_and_the_record_as_plain_values() -> None:
    blockmap = found(linear("a", "linear"), linear("b", "head"))
    assert blockmap.linear("b").role == "head"
    document = blockmap.to_dict()
    assert document["linears"][1]["name"] == "b"
    assert document["attentions"][0]["heads"] == 2
