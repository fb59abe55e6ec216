"""The judge runs what would be written: its figure is the report's, and it falls with the plan's quality."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import run

from onnxvitq.api import Result, inspect
from onnxvitq.core.errors import OutputError
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.graph import scratch
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import load_model

Judge = Callable[[QuantPlan], float]


@pytest.fixture(scope="module")
def judge(vit_file: Path) -> OutputEvaluator:
    graph = load_model(vit_file).graph
    canonicalise(graph)
    blockmap = inspect(vit_file).blockmap
    names = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    feeds = [{"image": np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32)} for seed in range(4)]
    references = [run(onnx.load(vit_file), feed)[0] for feed in feeds]
    layers = Layers(blockmap=blockmap, constants=constants(graph, names))
    return OutputEvaluator(graph=graph, layers=layers, feeds=feeds, references=references, threads=1)


def test_an_empty_plan_is_the_float_model(judge: Judge) -> None:
    assert judge(QuantPlan()) > 110  # float32 products added up in another order


def test_the_figure_is_that_of_the_written_model(judge: OutputEvaluator, unmapped: Result) -> None:
    outputs = [run(onnx.load(unmapped.output), feed, "all")[0] for feed in judge.feeds]
    noise = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in zip(judge.references, outputs, strict=True))
    signal = sum(float((a.astype(np.float64) ** 2).sum()) for a in judge.references)
    # Sessions of different sizes of memory and threads may add up in another order and move a code by one.
    assert judge(unmapped.plan) == pytest.approx(10 * np.log10(signal / noise), abs=0.5)


def test_a_worse_plan_gets_a_lower_figure(judge: Judge, unmapped: Result) -> None:
    head = next(name for name, decision in unmapped.plan.decisions.items() if decision.site.role == "head.weight")
    params = unmapped.plan.params(head)
    assert params is not None
    worse = unmapped.plan.with_params({head: replace(params, scale=params.scale * 4)})
    assert judge(worse) < judge(unmapped.plan) - 3


def test_the_same_plan_gets_the_same_figure_and_leaves_no_file(
    judge: OutputEvaluator, unmapped: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert judge(unmapped.plan) == judge(unmapped.plan)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(
    judge: OutputEvaluator, unmapped: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(proto: onnx.ModelProto, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "save_for_session", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OutputError, match="temporary files cannot be written: No space left on device"):
        judge(unmapped.plan)
    assert list(tmp_path.iterdir()) == []
