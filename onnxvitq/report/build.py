"""The report: one dictionary with stable keys, for JSON, and one table, for people."""

import json
import math
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan, planned_linear
from onnxvitq.evaluation.compare import Comparison
from onnxvitq.targets.ort_cpu.kernels import Audit, Count

REPORT_VERSION = 1
LISTED = 8  # layers in float that the table names; the JSON names all
PACKAGES = ("onnxvitq", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")


def describe_graph(blockmap: BlockMap) -> dict[str, Any]:
    """What was found, under the names that ``inspect`` and the report share."""
    linears = [linear for linear in blockmap.linears if linear.kind == "linear"]
    return {
        "blocks": len(blockmap.blocks),
        "attention": len(blockmap.attentions),
        "linears": {"found": len(linears)},
        "patch_embedding": {"found": len(blockmap.linears) - len(linears)},
        "norms": len(blockmap.norms),
        "products": [asdict(product) for product in blockmap.products],
        "unmatched": [asdict(entry) for entry in blockmap.unmatched],
    }


def describe_audit(audit: Audit) -> dict[str, Any]:
    """The counts of the audit."""
    return {
        "linears": _counts(audit.linears),
        "patch_embedding": _counts(audit.patch_embeddings),
        "attention_products": _counts(audit.attention_products),
        "other_products": _counts(audit.other_products),
        "branches": _counts(audit.branches),
        "unpacked_at_run_time": list(audit.unpacking),
        "input_shapes": {spec.name: list(spec.shape) for spec in audit.inputs},
        "audit_passed": audit.sound,
    }


def _counts(count: Count) -> dict[str, Any]:
    return {
        "found": count.found,
        "quantized": count.quantized,
        "integer_kernels": count.integer_kernels,
        "dynamic": count.dynamic,
        "float": [{"name": name, "reason": reason} for name, reason in count.float],
    }


def describe_bits(blockmap: BlockMap, plan: QuantPlan, written: onnx.ModelProto) -> dict[str, Any]:
    """Bits of every quantized layer, and what the file should weigh: weights x bits / 8 and every float or 32-bit value.

    ``weights_mb`` has the quantized weights by width, a shared one once; ``values_mb`` biases, scales and what stays float.
    """
    layers, counts = [], dict[int, int]()
    seen: set[str] = set()
    for linear in blockmap.linears:
        if not planned_linear(plan, linear):
            continue
        bits = plan.decisions[linear.weight].spec.bits
        activation = plan.decisions[linear.input].spec.bits
        layers.append({"name": linear.name, "role": linear.role, "bits": f"w{bits}a{activation}"})
        own = linear.name if linear.name in plan.weights else linear.weight
        if own not in seen:
            counts[bits] = counts.get(bits, 0) + linear.in_features * linear.out_features
            seen.add(own)
    weights = {str(bits): round(count * bits / 8e6, 4) for bits, count in sorted(counts.items())}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)
    values = sum(4 * math.prod(tensor.dims) for tensor in written.graph.initializer if tensor.data_type in kinds) / 1e6
    return {
        "layers": layers,
        "weights_mb": weights,
        "values_mb": round(values, 4),
        "expected_mb": round(sum(weights.values()) + values, 4),
    }


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """The comparison's figures."""
    return asdict(comparison)


def environment(threads: int) -> dict[str, Any]:
    """Versions and processor."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "threads": threads or "all",
    }


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


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON text, keys in the order in which they were written."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def summary(report: Mapping[str, Any]) -> Table:
    """The report as one table of two columns."""
    table = Table(
        title=f"onnxvitq {report['environment']['onnxvitq']}: {report['output']}",
        show_header=False,
        title_justify="left",
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    compare, size = report["compare"], report["size_mb"]
    table.add_row("blocks, attentions", f"{report['blocks']}, {report['attention']}")
    for key, name in (
        ("linears", "linears"),
        ("attention_products", "attention products"),
        ("other_products", "other products"),
        ("patch_embedding", "patch embedding"),
    ):
        counts = report[key]
        if key == "other_products" and not counts["found"]:
            continue
        found, planned, integer = counts["found"], counts["quantized"], counts["integer_kernels"]
        dynamic = f", {counts['dynamic']} of them dynamic" if counts["dynamic"] else ""
        table.add_row(name, f"{found} found, {planned} quantized, {integer} on integer kernels{dynamic}")
    shapes = report["input_shapes"].items()
    described = ", ".join(f"{name} {['?' if size is None else size for size in shape]}" for name, shape in shapes)
    table.add_row("inputs", described.replace("'", ""))
    for entry in _left_in_float(report):
        table.add_row("  in float", entry)
    table.add_row("bits", _bits(report["bits"], edges_at_8_bits=report["config"]["edges_at_8_bits"]))
    table.add_row("without VNNI", _saturation(report["saturation"]))
    agreement = compare["top1_agreement"]
    decisions = "" if agreement is None else f", top-1 agreement {100 * agreement:.2f} %"
    table.add_row(
        "against float",
        f"SQNR {compare['sqnr_db']} dB, cosine {compare['cosine']:.5f}{decisions} ({compare['samples']} samples)",
    )
    table.add_row("optimised against plain", f"{100 * compare['optimised_vs_plain']:.3g} % of the output's norm")
    table.add_row(
        "size",
        f"{size['float']:.2f} MB -> {size['quantized']:.2f} MB ({100 * size['quantized'] / size['float']:.1f} %); "
        f"{report['bits']['expected_mb']:.2f} by weights x bits and other values",
    )
    for step in report["steps"]:
        judged = step["before"] is not None and step["after"] is not None
        gain = "" if not judged else f": held-out SQNR {step['before']:.2f} -> {step['after']:.2f} dB"
        table.add_row(f"step {step['name']}", f"kept {step['kept']} of {step['layers']}{gain}")
    if "precision" in report:
        table.add_row("mixed precision", _describe_precision(report["precision"]))
    if "quality" in report:
        table.add_row("decisions lost", describe_quality(report["quality"]))
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items())
    table.add_row("seconds", seconds)
    return table


def ablation_table(report: Mapping[str, Any]) -> Table:
    """What each step did to the output on held-out samples; "not kept" shows what it would have done."""
    table = Table(title="steps, output on held-out calibration samples", title_justify="left")
    for name in ("step", "part", "kept", "SQNR before, dB", "SQNR after, dB", "gain, dB", "agreement after, %", "s"):
        table.add_column(name, overflow="fold")
    for step in report["steps"]:
        table.add_row(step["name"], "", *_gain(step), _percent(step["agreement"]), f"{step['seconds']:.1f}")
        for part in step["parts"]:
            if "before" in part:
                table.add_row("", part["part"], *_gain(part), "", "")
    return table


def _gain(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    before, after = entry["before"], entry["after"]
    both = before is not None and after is not None
    figures = ("" if value is None else f"{value:.2f}" for value in (before, after, after - before if both else None))
    return ("yes" if entry["accepted"] else "no", *figures)  # type: ignore[return-value]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _saturation(found: Mapping[str, Any]) -> str:
    """What processors that add two products of codes in 16 bits make of the model."""
    layers = found["layers"]
    if not layers:
        return "no product saturates: the same outputs on every processor"
    worst = f"{layers[0]['role']}, {100 * layers[0]['cut']:.3g} % of its sums"
    risk = f"{found['at_risk']} of {found['looked_at']} linears saturate on calibration data (worst: {worst})"
    return (
        f"WRONG on AVX2 and AVX512 alone: {risk}; --target auto limits weights"
        if found["at_risk"]
        else (f"{len(layers)} of {found['looked_at']} linears saturate for some input, none on calibration data")
    )


def _bits(bits: Mapping[str, Any], *, edges_at_8_bits: bool) -> str:
    """The most frequent width, and which layers have another one."""
    layers: dict[str, list[str]] = {}
    for layer in bits["layers"]:
        layers.setdefault(layer["bits"], []).append(layer["role"])
    ordered = sorted(layers.items(), key=lambda entry: -len(entry[1]))
    texts = [f"{width} in {len(roles)} linears" for width, roles in ordered[:1]]
    for width, roles in ordered[1:]:
        named = ", ".join(dict.fromkeys(roles[:LISTED])) + (", ..." if len(roles) > LISTED else "")
        texts.append(f"{width} in {len(roles)}: {named}")
    if edges_at_8_bits and len(ordered) > 1:
        texts.append("patch embedding and head keep 8 bits unless told otherwise (--no-edges-at-8-bits)")
    return "; ".join(texts) or "no linear is quantized"


def _describe_precision(precision: Mapping[str, Any]) -> str:
    chosen = precision["chosen"]
    counts = Counter(chosen["bits"].values())
    widths = ", ".join(f"{count} of {bits}" for bits, count in sorted(counts.items()))
    refused = "" if precision["mixed"] else "; as good as the best choice, which promises too little more"
    return (
        f"{chosen['average_bits']:.2f} bits a weight ({precision['granularity']}s: {widths} bits) by {precision['criterion']} "
        f"error; before the fit {chosen['measured_db']:.1f} dB, predicted {chosen['predicted_db']:.1f} dB{refused}"
    )


def describe_quality(quality: Mapping[str, Any]) -> str:
    """The drop with its sampling error, what was allowed, and what it took."""
    low, high = (100 * bound for bound in quality["interval"])
    changes = Counter(change["action"] for change in quality["changes"])
    judge = quality["judge"]
    lost = f"{quality['lost']} lost, {quality['gained']} gained" if judge["labelled"] else f"{quality['lost']}"
    text = (
        f"{lost} of {quality['samples']} by {judge['source']} (95 % interval {low:.2g} to {high:.3g} %), "
        f"expected {100 * quality['expected']:.2g} %, with 95 % certainty at most {100 * quality['bound']:.2g} %, "
        f"allowed {100 * quality['max_drop']:.3g} %"
    )
    done = {"raise": "raised to 8 bits", "float": "returned to float"}
    return "; ".join([text, *(f"{count} {done[action]}" for action, count in changes.items())])


def _left_in_float(report: Mapping[str, Any]) -> list[str]:
    entries = [
        f"{e['name']}: {e['reason']}"
        for key in ("linears", "patch_embedding", "attention_products", "other_products")
        for e in report[key]["float"]
    ]
    entries += [f"{e['name']} ({e['op']}): {e['reason']}" for e in report["unmatched"]]
    more = len(entries) - LISTED
    return entries[:LISTED] + ([f"and {more} more, named in the JSON report"] if more > 0 else [])
