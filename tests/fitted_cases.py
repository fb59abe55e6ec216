"""A small transformer as text, calibration samples for it, and a plan whose weights have few bits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from textgraph import model_of
from transformer_text import WIDTH, transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.calibration.kept import KeptStatistics
from onnxvitq.calibration.measure import Measurer
from onnxvitq.calibration.sweep import Sampling, sweep
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import weight_format
from onnxvitq.core.layers import Linear
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.source import open_source
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.state import FitContext, FitState, silent
from onnxvitq.fit.steps.bias import row_requests
from onnxvitq.fit.steps.channel_scaling.choose import scaling_requests
from onnxvitq.fit.steps.ranges import fit_ranges, range_requests
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import to_graph
from onnxvitq.graph.writing import save_for_session, to_proto
from onnxvitq.numerics.moments import Moments, Sums
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import target_of

Feeds = list[dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A canonical graph with a min-max plan, and what an evaluator of its output needs."""

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    feeds: Feeds
    folder: Path
    stats: Statistics

    def float_outputs(self, feeds: Feeds) -> list[np.ndarray]:
        """The float model's first output of each sample."""
        path = self.folder / "float.onnx"
        save_for_session(to_proto(self.graph.copy(), {}), path)
        session = Session(path, threads=1)
        return [session.run(feed)[0] for feed in feeds]

    def state(self) -> FitState:
        """As a step of the fit sees it."""
        return FitState(graph=self.graph, layers=self.layers, plan=self.plan, kept=KeptStatistics(self.stats))

    def context(self, **options: Any) -> FitContext:
        """Of a fit on the case's samples, with these options."""
        samples = np.concatenate([feed["tokens"] for feed in self.feeds])
        tokens = InputSpec(name="tokens", shape=(None, *samples.shape[1:]), dtype="float32")
        dataset = CalibrationDataset(open_source({"tokens": samples}, (tokens,), None), again=True)
        assert len(list(dataset)) == len(self.feeds)  # read once, as by the first sweep
        config = QuantConfig(**{"threads": 1, **options})
        return FitContext(
            config=config,
            dataset=dataset,
            float_outputs=self.float_outputs(self.feeds),
            measurer=Measurer(model="the test's graph", feeds=dataset, threads=1, progress=lambda *_: None),
            output=self.graph.outputs[0].name,
            outputs=len(self.graph.outputs),
            target=target_of(config),
            progress=silent,
        )

    def sqnr(self, plan: QuantPlan, feeds: Feeds) -> float:
        """Output SQNR of a plan in dB."""
        references = self.float_outputs(feeds)
        return OutputEvaluator(graph=self.graph, layers=self.layers, feeds=feeds, references=references, threads=1)(
            plan
        )


def with_bits(plan: QuantPlan, bits: int) -> QuantPlan:
    """The plan with weights of that many bits, not fitted."""
    spec = weight_format(bits)
    decisions = {
        name: replace(decision, spec=spec) if decision.site.kind == "weight" else decision
        for name, decision in plan.decisions.items()
    }
    return replace(plan, decisions=decisions)


def build_case(
    model: onnx.ModelProto,
    feeds: Feeds,
    folder: Path,
    *,
    bits: int = 4,
    attention: str = "float",
    exclude: tuple[str, ...] = (),
) -> Case:
    """Any model with a min-max plan measured on ``feeds``; weights of that many bits."""
    graph = to_graph(model)
    canonicalise(graph)
    blockmap = find_blocks(graph, "the test's graph")
    names = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    layers = Layers(blockmap=blockmap, constants=constants(graph, names))
    config = QuantConfig(attention=attention, nodes_to_exclude=exclude)  # type: ignore[arg-type]
    plan = with_bits(make_plan(blockmap, config), bits)
    needed = (*range_requests(layers, plan), *row_requests(layers, plan), *scaling_requests(blockmap))
    requests = tuple(dict.fromkeys(needed))
    path = folder / "observed.onnx"
    save_for_session(to_proto(with_outputs(graph, [request.tensor for request in requests]), {}), path)
    stats = sweep(path, feeds, requests, Sampling(seed=0), threads=1)
    plan = fit_ranges(layers, plan, stats)
    return Case(graph=graph, layers=layers, plan=plan, feeds=feeds, folder=folder, stats=stats)


def linear_of(case: Case, name: str) -> Linear:
    return case.layers.blockmap.linear(name)


def correlated(seed: int, samples: int, *, tokens: int = 9) -> Feeds:
    """Tokens (1, tokens, 32) that live near 8 directions, with a mean of their own in each channel."""
    rng = np.random.default_rng(7)  # the directions are the model's, the samples are the seed's
    mixing, mean = rng.normal(size=(8, WIDTH)), rng.normal(size=WIDTH)
    rng = np.random.default_rng(seed)
    values = (
        rng.normal(size=(samples, 1, tokens, 8)) @ mixing + mean + 0.1 * rng.normal(size=(samples, 1, tokens, WIDTH))
    )
    return [{"tokens": value.astype(np.float32)} for value in values]


def seeded_transformer(seed: int, **sizes: object) -> onnx.ModelProto:
    """The text transformer with gamma near one and weights of that seed."""
    model = model_of(transformer(**sizes))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or not values.shape:
            continue
        if values.ndim == 2:
            values = rng.normal(size=values.shape) / np.sqrt(len(values))
        elif tensor.name.endswith("_g"):
            values = rng.uniform(0.5, 1.5, values.shape)
        else:
            values = 0.2 * rng.normal(size=values.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def moments_of(a: np.ndarray, t: np.ndarray, w: np.ndarray) -> Moments:
    """Of inputs (N, I) and targets (N, O), of weights (N,)."""
    sums = Sums(a.shape[1], t.shape[1])
    sums.add(a, t, w)
    return sums.about_means()
