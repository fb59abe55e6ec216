"""Puts records together: what was found, the bits of what is written, the machine, what steps add."""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import onnx

from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan, planned_linear
from onnxvitq.report.model_records import BitsReport, Found, FoundGraph, FoundProduct, LayerBits, UnmatchedNode
from onnxvitq.report.records import PrecisionReport, PromiseReport, Section, SensitivityReport
from onnxvitq.report.report import Environment

PACKAGES = ("onnxvitq", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
TYPED = (SensitivityReport, PrecisionReport, PromiseReport)  # sections that the report has fields for

Record = TypeVar("Record")


def found_graph(blockmap: BlockMap) -> FoundGraph:
    """What was found, as ``inspect`` and the report say it."""
    linears = [linear for linear in blockmap.linears if linear.kind == "linear"]
    return FoundGraph(
        blocks=len(blockmap.blocks),
        attention=len(blockmap.attentions),
        linears=Found(found=len(linears)),
        patch_embedding=Found(found=len(blockmap.linears) - len(linears)),
        norms=len(blockmap.norms),
        products=tuple(FoundProduct(**asdict(product)) for product in blockmap.products),
        unmatched=tuple(UnmatchedNode(**asdict(node)) for node in blockmap.unmatched),
    )


def bits_report(blockmap: BlockMap, plan: QuantPlan, written: onnx.ModelProto) -> BitsReport:
    """Bits of every quantized layer, and what the written file should weigh."""
    layers, counts = [], dict[int, int]()
    counted: set[str] = set()
    for linear in blockmap.linears:
        if not planned_linear(plan, linear):
            continue
        bits = plan.decisions[linear.weight].spec.bits
        activation = plan.decisions[linear.input].spec.bits
        layers.append(LayerBits(name=linear.name, role=linear.role, bits=f"w{bits}a{activation}"))
        own = linear.name if linear.name in plan.weights else linear.weight
        if own not in counted:
            counts[bits] = counts.get(bits, 0) + linear.in_features * linear.out_features
            counted.add(own)
    weights = {str(bits): round(count * bits / 8e6, 4) for bits, count in sorted(counts.items())}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)
    values = sum(4 * math.prod(tensor.dims) for tensor in written.graph.initializer if tensor.data_type in kinds) / 1e6
    return BitsReport(
        layers=tuple(layers),
        weights_mb=weights,
        values_mb=round(values, 4),
        expected_mb=round(sum(weights.values()) + values, 4),
    )


def section(sections: Sequence[Section], kind: type[Record]) -> Record | None:
    """The content of that type among what steps fill in; None where no step did."""
    return next((one.content for one in sections if isinstance(one.content, kind)), None)


def other_sections(sections: Sequence[Section]) -> dict[str, object]:
    """What the report has no field for: sections of steps that it does not know, by their keys."""
    return {one.key: one.content for one in sections if not isinstance(one.content, TYPED)}


def environment(threads: int) -> Environment:
    """Versions and processor; ``threads`` of onnxruntime, 0 for one a core."""
    return Environment(
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        processor=_processor(),
        threads=threads or "all",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
