"""One random edit of one node, forty times: the integer model is the edited graph's, or there is none and a reason.

tools/fuzz.py does the same with a folder of graphs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from edit_evaluator import evaluate_edit
from graph_edits import draw, observe, prepared
from textgraph import model_of
from transformer_text import transformer

ExportVit = Callable[[str, bool], onnx.ModelProto]
Seen = dict[str, tuple[tuple[int, ...], np.dtype]]


@pytest.fixture(scope="module", params=("text", "torchscript", "dynamo"))
def graph(request: pytest.FixtureRequest, export_vit: ExportVit) -> tuple[onnx.ModelProto, Seen]:
    """A valid float graph with a free batch, and what its tensors are."""
    proto = model_of(transformer(tokens="9")) if request.param == "text" else export_vit(request.param, True)
    proto = prepared(proto)
    return proto, observe(proto)


@pytest.mark.parametrize("seed", range(13))
def test_an_edited_graph_is_quantized_as_it_is_or_refused(
    graph: tuple[onnx.ModelProto, Seen], seed: int, tmp_path: Path
) -> None:
    edited = draw(*graph, np.random.default_rng(seed))
    assert edited is not None, "no edit of any kind is valid"
    assert not evaluate_edit(edited, tmp_path).problems, edited.what
