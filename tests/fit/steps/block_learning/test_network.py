"""Graphs cut into blocks, and the blocks run by torch: what onnxruntime puts out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from textgraph import difference, feeds_of, graph_of, proto_of, run
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.layers import BlockMap
from onnxvitq.fit.steps.block_learning.network import cut
from onnxvitq.fit.steps.block_learning.network import run as run_block
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import load_model


def canonical(graph: gs.Graph) -> tuple[gs.Graph, BlockMap]:
    canonicalise(graph)
    return graph, find_blocks(graph, "test")


def test_units_in_turn_are_the_network() -> None:
    graph, blockmap = canonical(graph_of(transformer()))
    feeds = feeds_of(proto_of(graph), batch=2)
    values = {name: torch.from_numpy(value) for name, value in feeds.items()}
    for block in cut(graph, blockmap):
        values |= run_block(block, {name: values[name] for name in block.inputs})
    assert difference([values["logits"].numpy()], run(proto_of(graph), feeds)) < 1e-5


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_exported_graphs_run(
    export_vit: Callable[[str, bool], onnx.ModelProto], tmp_path: Path, exporter: str, dynamic: bool
) -> None:
    onnx.save(export_vit(exporter, dynamic), tmp_path / "vit.onnx")
    graph, blockmap = canonical(load_model(tmp_path / "vit.onnx").graph)
    blocks = cut(graph, blockmap)
    assert len(blocks) == len(blockmap.blocks) + 1
    assert {block.refused for block in blocks} == {()}
    feeds = feeds_of(proto_of(graph), batch=2)
    values = {name: torch.from_numpy(value) for name, value in feeds.items()}
    for block in blocks:
        values |= run_block(block, {name: values[name] for name in block.inputs})
    found = [values[output.name].numpy() for output in graph.outputs]
    assert difference(found, run(proto_of(graph), feeds)) < 1e-5


def test_an_operator_without_a_function_is_named() -> None:
    graph, blockmap = canonical(
        graph_of(transformer().replace("b1_gelu_e = Erf(b1_gelu_d)", "b1_gelu_e = Tan(b1_gelu_d)"))
    )
    assert [block.refused for block in cut(graph, blockmap)] == [(), (), ("Tan",)]  # no block has such an MLP


def test_a_mask_that_all_blocks_read_crosses_every_cut() -> None:
    text = transformer(depth=2).replace("tokens) =>", "tokens, float[1,1,1,T] mask) =>")
    text = text.replace("{ b0_norm1", "{ m = Neg(mask) b0_norm1")
    for index in range(2):
        text = text.replace(f"Softmax<axis = -1>(b{index}_scores)", f"Softmax<axis = -1>(b{index}_masked)")
        text = text.replace(f"b{index}_probs =", f"b{index}_masked = Add(b{index}_scores, m) b{index}_probs =")
    graph, blockmap = canonical(graph_of(text))
    assert [block.outputs for block in cut(graph, blockmap)] == [("b0_end", "m"), ("b1_end",), ("logits",)]
    assert [block.inputs for block in cut(graph, blockmap)] == [("mask", "tokens"), ("b0_end", "m"), ("b1_end",)]


def test_constants_are_read_as_they_are() -> None:
    graph, blockmap = canonical(graph_of(transformer()))
    block = cut(graph, blockmap)[0]
    tokens = torch.from_numpy(feeds_of(proto_of(graph), batch=1)["tokens"])
    first = run_block(block, {"tokens": tokens})
    assert np.array_equal(first["b0_end"].numpy(), run_block(block, {"tokens": tokens})["b0_end"].numpy())
