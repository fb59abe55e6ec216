"""Small models with a fitted plan, and what is looked up in the model that is written."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from textgraph import feeds_of, proto_of, run

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.ranges import fit_ranges
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.query import constants
from onnxvitq.graph.writing import to_proto
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu.layout import apply_plan

FLOAT_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "MatMulNBits"}


ROUNDING = 1e-6  # of the largest output: float32 sums in another order


@dataclass(frozen=True)
class Case:
    """A canonical graph, a min-max plan for it, and the inputs the plan was made with."""

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    feeds: dict[str, np.ndarray]

    @property
    def blockmap(self) -> BlockMap:
        return self.layers.blockmap

    def written(self, plan: QuantPlan | None = None) -> onnx.ModelProto:
        proto = to_proto(apply_plan(self.graph, self.layers, plan or self.plan), {})
        onnx.checker.check_model(proto, full_check=True)
        return proto


def case_of(graph: gs.Graph, **options: Any) -> Case:
    """Everything quantized, with the ranges of one run."""
    canonicalise(graph)
    blockmap = find_blocks(graph, "test")
    names = {name for linear in blockmap.linears for name in (linear.weight, linear.bias) if name}
    names |= {product.constant for product in blockmap.products if product.constant}
    layers = Layers(blockmap=blockmap, constants=constants(graph, names))
    plan = make_plan(blockmap, QuantConfig(**options))
    feeds = feeds_of(proto_of(graph), batch=2)
    tensors = sorted(
        name for name, decision in plan.decisions.items() if decision.site.kind == "activation" and name not in names
    )
    values = run(to_proto(with_outputs(graph, tensors), {}), feeds) if tensors else []
    ranges = {name: (float(value.min()), float(value.max())) for name, value in zip(tensors, values, strict=True)}
    plan = fit_ranges(layers, plan, Statistics(count=1, ranges=ranges))
    return Case(graph, layers, plan, feeds)


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph that onnxruntime runs."""
    onnx.save(model, folder / "quantized.onnx")
    Session(folder / "quantized.onnx", level="all", threads=1, optimized=folder / "optimised.onnx")
    return onnx.load(folder / "optimised.onnx")


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


ONE_LINEAR = (
    "(float[N,5,32] x, float[N,2,5,4] q) => (float[A,B,C] y, float[D,E,F,G] z) <float[32,24] W, float[24] b>"
    "{ p = MatMul(x, W) y = Add(p, b) k = Transpose<perm = [0, 1, 3, 2]>(q) s = MatMul(q, k) w = Softmax<axis = -1>(s)"
    " z = MatMul(w, q) }"
)
