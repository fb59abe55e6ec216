"""Channel maps folded into a graph: the same function, other constants."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from textgraph import difference, digest, feeds_of, graph_of, model_of, operators, proto_of, run
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import ChannelScaling
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import to_graph

EXACT = 1e-5  # of the largest output: constants are rounded to float32 anew
FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]
KINDS = ["norm", "value", "scores", "online"]
DECOMPOSED = (
    "{0}_m = ReduceMean<axes = [-1]>({1}) {0}_c = Sub({1}, {0}_m) {0}_q = Mul({0}_c, {0}_c)"
    " {0}_v = ReduceMean<axes = [-1]>({0}_q) {0}_e = Add({0}_v, eps) {0}_s = Sqrt({0}_e) {0}_n = Div({0}_c, {0}_s)"
    " {0}_w = Mul({0}_n, {0}_g) {0} = Add({0}_w, {0}_b)"
)


def drawn(channels: int, seed: int, *, shifted: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A shift and a scale within a hundred of each other."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=channels) if shifted else np.zeros(channels)
    return shift.astype(np.float32), np.exp(rng.uniform(-2.3, 2.3, channels)).astype(np.float32)


def maps_of(blockmap: BlockMap, kind: str) -> list[ChannelScaling]:
    """A random map of that kind wherever one is allowed."""
    found: list[tuple[str, tuple[str, ...], int, bool]] = []
    if kind == "norm":
        for norm in (norm for norm in blockmap.norms if norm.only_linears):
            readers = [linear for linear in blockmap.linears if linear.input == norm.output]
            shifted = bool(norm.beta) and all(reader.bias for reader in readers)
            found.append((norm.name, tuple(reader.name for reader in readers), readers[0].in_features, shifted))
    elif kind == "online":
        found = [
            (one.input, (one.name,), one.in_features, False) for one in blockmap.linears if one.role.endswith("fc2")
        ]
    for attention in blockmap.attentions:
        source, reader = (
            (attention.value_linear, attention.proj_linear)
            if kind == "value"
            else (attention.query_linear, attention.key_linear)
        )
        if kind in ("value", "scores"):
            linear = blockmap.linear(source)
            found.append((source, (reader,), linear.out_features, bool(linear.bias)))
    return [
        ChannelScaling(kind=kind, source=source, readers=readers, shift=shift, scale=scale, gain_db=1.0)  # type: ignore[arg-type]
        for index, (source, readers, channels, shifted) in enumerate(found)
        for shift, scale in [drawn(channels, index, shifted=shifted)]
    ]


def mapped(graph: gs.Graph, *kinds: str) -> gs.Graph:
    blockmap = find_blocks(graph, "the test's graph")
    maps = [one for kind in kinds for one in maps_of(blockmap, kind)]
    assert maps
    return apply_scalings(graph, blockmap, maps)


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], ("norm", "scores", "value", "online")], ids="-".join)
def test_a_text_transformer_stays_what_it_was(kinds: tuple[str, ...]) -> None:
    model = model_of(transformer())
    graph = to_graph(model)
    before = digest(graph)
    changed = mapped(graph, *kinds)
    feeds = feeds_of(model)
    assert difference(run(proto_of(changed), feeds), run(model, feeds)) < EXACT
    assert digest(graph) == before
    if kinds == ("online",):
        assert len(changed.nodes) == len(graph.nodes) + 2  # a Mul a block
    elif "online" not in kinds:
        assert sorted(operators(changed).split()) == sorted(operators(graph).split())


@pytest.mark.parametrize(("exporter", "dynamic"), FORMS)
def test_an_exported_model_stays_what_it_was(
    export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str, dynamic: bool
) -> None:
    model = export_vit(exporter, dynamic)
    graph = to_graph(model)
    canonicalise(graph)
    feeds = {"image": np.random.default_rng(0).normal(size=(2 if dynamic else 1, 3, 16, 16)).astype(np.float32)}
    expected = run(model, feeds)
    for kind in KINDS:
        assert difference(run(proto_of(mapped(graph, kind)), feeds), expected) < EXACT


def test_the_mapped_tensor_is_the_tensor_mapped() -> None:
    graph = graph_of(transformer(depth=1))
    blockmap = find_blocks(graph, "the test's graph")
    (one,) = maps_of(blockmap, "value")
    changed = apply_scalings(graph, blockmap, [one])
    for either in (graph, changed):
        either.outputs = [either.tensors()["b0_v_out"]]
    feeds = feeds_of(model_of(transformer(depth=1)))
    before, after = (run(proto_of(either.cleanup()), feeds)[0] for either in (graph, changed))
    assert after == pytest.approx((before - one.shift) / one.scale, abs=1e-3)  # scales down to a tenth


def test_all_blocks_are_found_again_after_it() -> None:
    graph = graph_of(transformer())
    before = find_blocks(graph, "the test's graph")
    after = find_blocks(mapped(graph, "norm", "scores", "value"), "the test's graph")
    assert [linear.name for linear in after.linears] == [linear.name for linear in before.linears]
    assert after.attentions == before.attentions
    assert [norm.output for norm in after.norms] == [norm.output for norm in before.norms]


def test_without_biases_there_is_only_a_scale() -> None:
    text = transformer(depth=1)
    for name in ("b0_q", "b0_k", "b0_v", "b0_proj", "b0_fc1"):
        text = text.replace(f"{name} = MatMul", f"{name}_out = MatMul").replace(
            f" {name}_out = Add({name}, {name}_b)", ""
        )
        text = text.replace(f", float[32] {name}_b", "").replace(f", float[64] {name}_b", "")
    model = model_of(text)
    graph = to_graph(model)
    assert not find_blocks(graph, "the test's graph").linear("b0_q_out").bias
    feeds = feeds_of(model)
    for kind in KINDS:
        assert difference(run(proto_of(mapped(graph, kind)), feeds), run(model, feeds)) < EXACT


def decomposed(text: str, name: str, x: str) -> str:
    op = f"{name} = LayerNormalization({x}, {name}_g, {name}_b)"
    assert op in text
    return text.replace(op, DECOMPOSED.format(name, x)).replace("> {", ", float eps = {1e-6}> {", 1)


def test_a_layer_norm_of_many_nodes() -> None:
    model = model_of(decomposed(transformer(depth=1), "b0_norm1", "tokens"))
    graph, feeds = to_graph(model), feeds_of(model)
    assert find_blocks(graph, "the test's graph").norms[0].form == "decomposed"
    assert difference(run(proto_of(mapped(graph, "norm")), feeds), run(model, feeds)) < EXACT


def test_a_root_mean_square_norm_has_no_beta_and_no_shift() -> None:
    text = decomposed(transformer(depth=1), "b0_norm1", "tokens")
    text = text.replace("b0_norm1_w = Mul(b0_norm1_n, b0_norm1_g) b0_norm1 = Add(b0_norm1_w, b0_norm1_b)", "")
    text = text.replace("b0_norm1_m = ReduceMean<axes = [-1]>(tokens) b0_norm1_c = Sub(tokens, b0_norm1_m)", "")
    text = text.replace("b0_norm1_c", "tokens").replace("float[32] b0_norm1_b, ", "")
    text = text.replace(
        "b0_norm1_n = Div(tokens, b0_norm1_s)",
        "b0_norm1_n = Div(tokens, b0_norm1_s) b0_norm1 = Mul(b0_norm1_n, b0_norm1_g)",
    )
    model = model_of(text)
    graph, feeds = to_graph(model), feeds_of(model)
    norm = find_blocks(graph, "the test's graph").norms[0]
    assert (norm.form, norm.beta) == ("rms", "")
    assert difference(run(proto_of(mapped(graph, "norm")), feeds), run(model, feeds)) < EXACT


def test_of_two_norms_with_one_gamma_only_one_changes() -> None:
    text = transformer(depth=1).replace("b0_norm2_g", "b0_norm1_g").replace("float[32] b0_norm1_g, ", "", 1)
    model = model_of(text)
    graph, feeds = to_graph(model), feeds_of(model)
    blockmap = find_blocks(graph, "the test's graph")
    assert [norm.gamma for norm in blockmap.norms[:2]] == ["b0_norm1_g"] * 2
    first, second = maps_of(blockmap, "norm")
    for maps in ([first], [second], [first, second]):
        changed = apply_scalings(graph, blockmap, maps)
        assert difference(run(proto_of(changed), feeds), run(model, feeds)) < EXACT
    only = apply_scalings(graph, blockmap, [second])
    gammas = {node.name: node.inputs[1].name for node in only.nodes if node.op == "LayerNormalization"}
    assert gammas["b0_norm1"] == "b0_norm1_g"
    assert gammas["b0_norm2"] != "b0_norm1_g"


def test_layers_with_one_weight_get_one_each() -> None:
    text = transformer(depth=1).replace("MatMul(b0_norm1, b0_v_W)", "MatMul(b0_norm1, b0_q_W)")
    model = model_of(text.replace("float[32,32] b0_v_W, ", ""))
    graph, feeds = to_graph(model), feeds_of(model)
    for kind in KINDS:
        assert difference(run(proto_of(mapped(graph, kind)), feeds), run(model, feeds)) < EXACT


def test_no_map_no_change() -> None:
    graph = graph_of(transformer(depth=1))
    same = apply_scalings(graph, find_blocks(graph, "the test's graph"), [])
    assert digest(same) == digest(graph)
