"""Which kernels really run: the optimised session against the plan. A layer planned and not there is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxvitq.core.layers import BlockMap, Linear, products
from onnxvitq.core.plan import QuantPlan, planned_linear, planned_products
from onnxvitq.core.tensors import InputSpec
from onnxvitq.graph.scratch import scratch_folder
from onnxvitq.report.model_records import Audit, FloatLayer, LayerCounts
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu.branches import branch_names
from onnxvitq.targets.ort_cpu.draft import integer_name
from onnxvitq.targets.ort_cpu.native import why_simulated
from onnxvitq.targets.ort_cpu.packing import PACKED

NOT_FUSED = "planned, but onnxruntime runs it in float"
BARE = "planned, but onnxruntime multiplies its codes without fusing scales and bias"
# What onnxruntime's CPU provider calls its integer matrix products.
INTEGER_KERNELS = frozenset({"QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConv"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Written:
    """A written model, for counting.

    Attributes:
        kernels: node of the optimised graph -> its operator.
        plan: that was written.
        simulated: linear, product or side of a branch -> why it is simulated.
    """

    kernels: Mapping[str, str]
    plan: QuantPlan
    simulated: Mapping[str, str]

    def count(self, names: Sequence[tuple[str, str]], planned: set[str]) -> LayerCounts:
        """Of layers, each with its name in the canonical graph and in the written one."""
        integer = {name for name, written in names if self.kernels.get(written) in INTEGER_KERNELS}
        in_float = [
            FloatLayer(name=name, reason=self._why(name, written, planned))
            for name, written in names
            if name not in integer
        ]
        return LayerCounts(
            found=len(names),
            quantized=sum(name in planned for name, _ in names),
            integer_kernels=len(integer & planned),
            simulated=sum(layer.name in planned and layer.name in self.simulated for layer in in_float),
            in_float=tuple(in_float),
        )

    def _why(self, name: str, written: str, planned: set[str]) -> str:
        """Why a layer does not count: a bare MatMulInteger is no float layer, but pays for its scales and bias apart."""
        if name not in planned:
            return self.plan.kept_float.get(name, "not planned")
        missed = BARE if self.kernels.get(written) == "MatMulInteger" else NOT_FUSED
        return self.simulated.get(name, missed)


def audit(model: Path, blockmap: BlockMap, plan: QuantPlan, threads: int) -> Audit:
    """Open the quantized model as a user would and look at what the optimiser made of it."""
    kernels, inputs = _kernels(model, threads)
    written = _Written(kernels=kernels, plan=plan, simulated=_simulated(plan, blockmap))
    planned = {linear.name for linear in blockmap.linears if planned_linear(plan, linear)}
    kinds = {
        kind: [linear for linear in blockmap.linears if linear.kind == kind] for kind in ("linear", "patch_embedding")
    }
    attention = [node for a in blockmap.attentions for node in (a.scores_node, a.context_node)]
    others = [product.name for product in blockmap.products]
    planned_nodes = set(planned_products(plan, blockmap))
    return Audit(
        linears=_count_linears(written, kinds["linear"], planned),
        patch_embedding=_count_linears(written, kinds["patch_embedding"], planned),
        attention_products=written.count([(node, node) for node in attention], planned_nodes),
        other_products=written.count([(node, node) for node in others], planned_nodes),
        branches=_count_branches(written, blockmap),
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


def _simulated(plan: QuantPlan, blockmap: BlockMap) -> dict[str, str]:
    """What is simulated, by name, and why; of a branch it is the side that reads the layer's input."""
    reasons = {linear.name: why_simulated(plan, [linear.input]) for linear in blockmap.linears}
    reasons |= {f"{name} A": reasons[name] for name in plan.branches}
    reasons |= {node: why_simulated(plan, operands) for node, operands in products(blockmap)}
    return {name: reason for name, reason in reasons.items() if reason}


def _count_linears(written: _Written, linears: Sequence[Linear], planned: set[str]) -> LayerCounts:
    counts = written.count([(linear.name, integer_name(linear.name)) for linear in linears], planned)
    in_float = counts.reasons
    dynamic = [linear.name for linear in linears if linear.input in written.plan.dynamic and linear.name in planned]
    return replace(counts, dynamic=sum(name not in in_float for name in dynamic))


def _count_branches(written: _Written, blockmap: BlockMap) -> LayerCounts:
    """Both products of every branch; several branches may share the first."""
    sides = [
        (f"{linear} {side}", name)
        for linear, names in branch_names(written.plan, blockmap).items()
        for side, name in zip(("A", "B"), names, strict=True)
    ]
    return written.count(sides, {name for name, _ in sides})
