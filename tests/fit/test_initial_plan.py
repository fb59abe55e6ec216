from dataclasses import replace
from typing import Any

import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import activation_format, weight_format
from onnxvitq.core.layers import BlockMap, Site, operand_sites
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.quantize_options import TargetName
from onnxvitq.fit.initial_plan import ACTIVATION, make_plan

QUERY, KEY, FC1 = "/attn/qkv/MatMul_part0", "/attn/qkv/MatMul_part1", "/mlp/fc1/MatMul"
SCORES, CONTEXT = "/attn/MatMul", "/attn/MatMul_1"
EVERYTHING = ["x", f"{QUERY}.weight", f"{KEY}.weight", "h", f"{FC1}.weight", "q", "k", "p", "v"]


def excluding(blockmap: BlockMap, *patterns: str) -> QuantPlan:
    return make_plan(blockmap, QuantConfig(nodes_to_exclude=patterns))


def test_every_linear_and_both_products_are_planned(blockmap: BlockMap) -> None:
    plan = make_plan(blockmap, QuantConfig())
    assert list(plan.decisions) == EVERYTHING
    assert all(decision.params is None for decision in plan.decisions.values())
    assert (plan.biases, plan.kept_float) == ({}, {})


def test_sites_know_their_readers_and_roles(blockmap: BlockMap) -> None:
    sites = {name: decision.site for name, decision in make_plan(blockmap, QuantConfig()).decisions.items()}
    assert sites["x"] == Site(
        name="x", kind="activation", role="block0.attn.query.input", consumers=((QUERY, 0), (KEY, 0))
    )
    assert sites[f"{KEY}.weight"] == Site(
        name=f"{KEY}.weight", kind="weight", role="block0.attn.key.weight", consumers=((KEY, 1),)
    )
    assert sites["p"] == Site(name="p", kind="activation", role="block0.attn.probs", consumers=((CONTEXT, 0),))
    assert [sites[name].consumers for name in "qkv"] == [((SCORES, 0),), ((SCORES, 1),), ((CONTEXT, 1),)]


def test_formats(blockmap: BlockMap) -> None:
    for bits in (7, 8):
        plan = make_plan(blockmap, QuantConfig(bits=f"w{bits}a8", target="arm64"))
        for decision in plan.decisions.values():
            assert decision.spec == (weight_format(bits) if decision.site.kind == "weight" else ACTIVATION)
    assert activation_format(8) == ACTIVATION
    assert weight_format(7) == weight_format(7)


@pytest.mark.parametrize("target", ["auto", "x86-avx2", "x86-vnni", "arm64"])
def test_weights_are_free_of_saturation_unless_the_target_needs_it_not(blockmap: BlockMap, target: TargetName) -> None:
    free = target in ("auto", "x86-avx2")
    for bits in (7, 8):
        plan = make_plan(blockmap, QuantConfig(bits=f"w{bits}a8", target=target))
        specs = {one.spec for one in plan.decisions.values() if one.site.kind == "weight"}
        assert specs == {weight_format(bits, saturation_free=free)}
        assert {one.limits_pairs for one in specs} == {free and bits == 8}  # 7 bits are free without a limit


def test_a_transposed_product_reads_the_value_first(blockmap: BlockMap) -> None:
    attention = replace(blockmap.attentions[0], probs_first=False)
    assert [(node, port, tensor) for node, port, tensor, _ in operand_sites(attention)] == [
        (SCORES, 0, "q"),
        (SCORES, 1, "k"),
        (CONTEXT, 1, "p"),
        (CONTEXT, 0, "v"),
    ]


def test_attention_kept_float(blockmap: BlockMap) -> None:
    plan = make_plan(blockmap, QuantConfig(attention="float"))
    assert list(plan.decisions) == EVERYTHING[:5]
    assert plan.kept_float == {SCORES: "attention kept float", CONTEXT: "attention kept float"}


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        (QUERY, [QUERY]),  # a node's name
        ("block0.attn.query", [QUERY]),  # a role
        ("block?.attn.key", [KEY]),
        ("*qkv*", [QUERY, KEY]),
        ("/attn/qkv/MatMul", [QUERY, KEY]),  # the packed node that both were split from
        ("*.mlp.*", [FC1]),
        ("block0.attn.scores", [SCORES]),
        (CONTEXT, [CONTEXT]),
        ("block0.attn", [SCORES, CONTEXT]),
        ("block0*", [QUERY, KEY, FC1, SCORES, CONTEXT]),
    ],
)
def test_a_pattern_names_nodes_and_roles(blockmap: BlockMap, pattern: str, kept: list[str]) -> None:
    plan = excluding(blockmap, pattern)
    assert plan.kept_float == dict.fromkeys(kept, f"excluded by {pattern!r}")
    readers = {node for decision in plan.decisions.values() for node, _ in decision.site.consumers}
    assert readers == {QUERY, KEY, FC1, SCORES, CONTEXT} - set(kept)


def test_a_tensor_that_another_layer_reads_stays_planned_for_that_layer(blockmap: BlockMap) -> None:
    plan = excluding(blockmap, QUERY)
    assert plan.decisions["x"].site.consumers == ((KEY, 0),)
    assert plan.decisions["x"].site.role == "block0.attn.key.input"
    assert f"{QUERY}.weight" not in plan.decisions
    assert "x" not in excluding(blockmap, QUERY, KEY).decisions


def test_several_patterns_add_up(blockmap: BlockMap) -> None:
    assert excluding(blockmap, "*.fc1", SCORES).kept_float == {
        FC1: "excluded by '*.fc1'",
        SCORES: f"excluded by {SCORES!r}",
    }


@pytest.mark.parametrize("pattern", ["block0.mlp.fc2", "block1.*", "BLOCK0.MLP.FC1", "", "/attn/Softmax"])
def test_a_pattern_that_matches_nothing_is_an_error(blockmap: BlockMap, pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches no linear or attention product") as caught:
        excluding(blockmap, FC1, pattern)  # the other pattern does match
    assert caught.value.where == "--nodes-to-exclude"
    assert repr(pattern) in str(caught.value)


def test_a_near_miss_gets_suggestions(blockmap: BlockMap) -> None:
    with pytest.raises(ConfigError) as caught:
        excluding(blockmap, "block0.mlp.fc2")
    assert caught.value.hint.startswith("did you mean block0.mlp.fc1")
    with pytest.raises(ConfigError) as caught:
        excluding(blockmap, "§§§")
    assert caught.value.hint == ""


# ------------------------------------------------------------------------------------------ products outside attentions


def test_products_are_planned_after_the_attentions(with_products: Layers) -> None:
    plan = make_plan(with_products.blockmap, QuantConfig())
    assert list(plan.decisions) == [*EVERYTHING, "a", "b", "table"]
    sites = {name: decision.site for name, decision in plan.decisions.items()}
    assert sites["a"] == Site(name="a", kind="activation", role="product0.left", consumers=(("/gram", 0), ("/sum", 1)))
    assert sites["b"] == Site(name="b", kind="activation", role="product1.left", consumers=(("/sum", 0),))
    assert sites["table"] == Site(name="table", kind="activation", role="product2.right", consumers=(("/table", 1),))
    # Tensors that a linear or an attention reads as well keep the role of the first reader.
    assert (sites["h"].role, sites["h"].consumers) == ("block0.mlp.fc1.input", ((FC1, 0), ("/gram", 1)))
    assert (sites["q"].role, sites["q"].consumers) == ("block0.attn.query", ((SCORES, 0), ("/table", 0)))
    assert all(plan.decisions[name].spec == ACTIVATION for name in ("a", "b", "table"))


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("/gram", ["/gram"]), ("product0", ["/gram"]), ("product*", ["/gram", "/sum", "/table"]), ("/ta*", ["/table"])],
)
def test_a_product_is_excluded_by_its_name_or_its_number(with_products: Layers, pattern: str, kept: list[str]) -> None:
    plan = excluding(with_products.blockmap, pattern)
    assert plan.kept_float == dict.fromkeys(kept, f"excluded by {pattern!r}")
    readers = {node for decision in plan.decisions.values() for node, _ in decision.site.consumers}
    assert readers == {QUERY, KEY, FC1, SCORES, CONTEXT, "/gram", "/sum", "/table"} - set(kept)
    assert plan.decisions["h"].site.consumers[0] == (FC1, 0)


def test_a_products_number_does_not_move_when_another_is_excluded(with_products: Layers) -> None:
    sites = excluding(with_products.blockmap, "product0").decisions
    assert (sites["b"].site.role, sites["a"].site.role) == ("product1.left", "product1.right")


def test_products_stay_float_with_the_attention(with_products: Layers) -> None:
    plan = make_plan(with_products.blockmap, QuantConfig(attention="float"))
    assert list(plan.decisions) == EVERYTHING[:5]
    assert plan.kept_float == dict.fromkeys((SCORES, CONTEXT, "/gram", "/sum", "/table"), "attention kept float")


def test_a_near_miss_of_a_product_gets_a_suggestion(with_products: Layers) -> None:
    with pytest.raises(ConfigError) as caught:
        excluding(with_products.blockmap, "product3")
    assert "product2" in caught.value.hint


# ----------------------------------------------------------------------------------------------------------------- bits


def bits_of(blockmap: BlockMap, **options: object) -> dict[str, int]:
    """Tensor -> bits."""
    plan = make_plan(blockmap, QuantConfig(**options))  # type: ignore[arg-type]
    return {name: decision.spec.bits for name, decision in plan.decisions.items()}


def test_every_layer_has_the_bits_asked_for(blockmap: BlockMap) -> None:
    bits = bits_of(blockmap, bits="w3a5")
    assert {name: bits[name] for name in EVERYTHING} == bits
    assert all(value == (3 if name.endswith("weight") else 5) for name, value in bits.items())


def test_the_last_pattern_that_matches_counts(blockmap: BlockMap) -> None:
    overrides = (("block0*", "w4a8"), ("*.fc1", "w2a4"), ("*.scores", "w8a6"))
    bits = bits_of(blockmap, bit_overrides=overrides)
    assert (bits[f"{QUERY}.weight"], bits[f"{FC1}.weight"], bits["h"]) == (4, 2, 4)
    assert (bits["q"], bits["k"], bits["p"], bits["v"]) == (6, 6, 8, 8)


def test_of_layers_that_read_one_tensor_the_widest_wins(blockmap: BlockMap) -> None:
    bits = bits_of(blockmap, bits="w4a4", bit_overrides=((KEY, "w6a7"),))
    assert (bits["x"], bits[f"{QUERY}.weight"], bits[f"{KEY}.weight"]) == (7, 4, 6)


def test_a_layer_may_stay_float_and_come_back(blockmap: BlockMap) -> None:
    plan = make_plan(blockmap, QuantConfig(bit_overrides=(("block0.*", "float"), ("*.fc1", "w4a8"))))
    assert FC1 not in plan.kept_float
    assert plan.kept_float[QUERY] == "kept float by 'block0.*'"
    assert plan.decisions[f"{FC1}.weight"].spec.bits == 4


def test_the_edges_keep_eight_bits(blockmap: BlockMap) -> None:
    first, *between, last = blockmap.linears
    ends = (replace(first, kind="patch_embedding", role="patch_embed"), *between, replace(last, role="head"))
    outer = replace(blockmap, linears=ends)
    bits = bits_of(outer, bits="w4a5")
    assert (bits[first.weight], bits[between[0].weight], bits[last.weight], bits[last.input]) == (8, 4, 8, 8)
    assert set(bits_of(outer, bits="w4a5", edges_at_8_bits=False).values()) == {4, 5}
    assert bits_of(outer, bits="w4a5", bit_overrides=(("head", "w2a3"),))[last.weight] == 2
    assert bits_of(outer, bits="w7a8")[last.weight] == 7  # for processors on which 8 bits saturate
    assert bits_of(blockmap, bits="w4a5")[last.weight] == 4  # inside a block it is no edge


def test_the_preset_for_accuracy_leaves_in_float_what_is_outside_the_blocks(hybrid: BlockMap) -> None:
    plan = make_plan(hybrid, QuantConfig(preset="accuracy"))
    assert set(plan.kept_float) == {"stem", "gate", "patches", "between", "head", SCORES, CONTEXT}
    assert plan.per_token == {"x", "h"}
    assert list(plan.decisions) == EVERYTHING[:5]


def test_of_a_head_of_several_layers_it_leaves_all_in_float(hybrid: BlockMap) -> None:
    head = hybrid.linears[-1]
    longer = replace(hybrid, linears=(*hybrid.linears[:-1], replace(head, name="before", weight="before.weight"), head))
    assert {"before", "head"} <= make_plan(longer, QuantConfig(preset="accuracy")).kept_float.keys()
    assert not make_plan(longer, QuantConfig()).kept_float


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"skip": ("outer-linears",)}, {SCORES, CONTEXT}),
        ({"attention": "int8"}, {"stem", "gate", "patches", "between", "head"}),
        ({"bit_overrides": (("head", "w8a8"),)}, {"stem", "gate", "patches", "between", SCORES, CONTEXT}),
    ],
)
def test_what_the_options_say_goes_before_a_preset(hybrid: BlockMap, options: dict[str, Any], kept: set[str]) -> None:
    config = QuantConfig(preset="accuracy", activations="static", **options)
    plan = make_plan(hybrid, config)
    assert (set(plan.kept_float), plan.dynamic) == (kept, frozenset())


def test_bits_for_nothing_is_an_error(blockmap: BlockMap) -> None:
    with pytest.raises(ConfigError, match="matches no linear") as caught:
        make_plan(blockmap, QuantConfig(bit_overrides=(("block7.*", "w4a8"),)))
    assert caught.value.where == "--bits-for"
