"""Which kernels really run: the optimised session against the plan. A layer planned and not there is named."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from onnxvitq.core.layers import BlockMap, Linear
from onnxvitq.core.plan import QuantPlan, planned_linear, planned_products
from onnxvitq.core.tensors import InputSpec
from onnxvitq.graph.scratch import scratch_folder
from onnxvitq.report.model_records import Audit, FloatLayer, LayerCounts
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu.branches import branch_names
from onnxvitq.targets.ort_cpu.draft import integer_name
from onnxvitq.targets.ort_cpu.packing import PACKED

NOT_FUSED = "planned, but onnxruntime runs it in float"
BARE = "planned, but onnxruntime multiplies its codes without fusing scales and bias"
# What onnxruntime's CPU provider calls its integer matrix products.
INTEGER_KERNELS = frozenset({"QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConv"})


def audit(model: Path, blockmap: BlockMap, plan: QuantPlan, threads: int) -> Audit:
    """Open the quantized model as a user would and look at what the optimiser made of it."""
    kernels, inputs = _kernels(model, threads)
    planned = {linear.name for linear in blockmap.linears if planned_linear(plan, linear)}
    kinds = {kind: [x for x in blockmap.linears if x.kind == kind] for kind in ("linear", "patch_embedding")}
    products = [node for a in blockmap.attentions for node in (a.scores_node, a.context_node)]
    others = [product.name for product in blockmap.products]
    planned_nodes = set(planned_products(plan, blockmap))
    return Audit(
        linears=_count_linears(kinds["linear"], planned, kernels, plan),
        patch_embedding=_count_linears(kinds["patch_embedding"], planned, kernels, plan),
        attention_products=_count([(node, node) for node in products], planned_nodes, kernels, plan),
        other_products=_count([(node, node) for node in others], planned_nodes, kernels, plan),
        branches=_count_branches(plan, blockmap, kernels),
        unpacked_at_run_time=tuple(name for name in kernels if name.startswith(PACKED)),
        input_shapes={spec.name: spec.shape for spec in inputs},
    )


def _kernels(model: Path, threads: int) -> tuple[dict[str, str], tuple[InputSpec, ...]]:
    """Node name -> operator of the optimised graph, without its weights; and the model's inputs."""
    with scratch_folder() as folder:
        optimized = folder / "optimized.onnx"
        inputs = Session(model, threads=threads, optimized=optimized).input_specs
        nodes = onnx.load(optimized, load_external_data=False).graph.node
        return {node.name: node.op_type for node in nodes}, inputs


def _count_linears(
    linears: Sequence[Linear], planned: set[str], kernels: dict[str, str], plan: QuantPlan
) -> LayerCounts:
    count = _count([(linear.name, integer_name(linear.name)) for linear in linears], planned, kernels, plan)
    in_float = count.reasons
    dynamic = [linear.name for linear in linears if linear.input in plan.dynamic and linear.name in planned]
    return replace(count, dynamic=sum(name not in in_float for name in dynamic))


def _count_branches(plan: QuantPlan, blockmap: BlockMap, kernels: dict[str, str]) -> LayerCounts:
    """Both products of every branch; several branches may share the first."""
    written = [
        (f"{linear} {side}", name)
        for linear, names in branch_names(plan, blockmap).items()
        for side, name in zip(("A", "B"), names, strict=True)
    ]
    return _count(written, {name for name, _ in written}, kernels, plan)


def _count(
    names: Sequence[tuple[str, str]], planned: set[str], kernels: dict[str, str], plan: QuantPlan
) -> LayerCounts:
    """names: (name in the canonical graph, name in the written one)."""
    integer = {name for name, written in names if kernels.get(written) in INTEGER_KERNELS}
    in_float = [
        FloatLayer(
            name=name,
            reason=_missed(kernels, written) if name in planned else plan.kept_float.get(name, "not planned"),
        )
        for name, written in names
        if name not in integer
    ]
    return LayerCounts(
        found=len(names),
        quantized=sum(name in planned for name, _ in names),
        integer_kernels=len(integer & planned),
        in_float=tuple(in_float),
    )


def _missed(kernels: dict[str, str], written: str) -> str:
    """Why a planned layer does not count: a bare MatMulInteger is no float layer, but pays for its scales and bias apart."""
    return BARE if kernels.get(written) == "MatMulInteger" else NOT_FUSED
