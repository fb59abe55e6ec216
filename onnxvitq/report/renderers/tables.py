"""Tables for a terminal: the summary, what each step did, sensitivities."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from onnxvitq.report.model_records import BitsReport, LayerCounts, SaturationReport
from onnxvitq.report.records import Part, PrecisionReport, PromiseReport, SiteSensitivity, StepRecord
from onnxvitq.report.report import Report

LISTED = 8  # layers in float that the table names; the JSON names all


def text_of(table: Table, console: Console | None = None) -> str:
    """A table as a terminal shows it, as wide as standard output; node names and paths are printed as they are."""
    console = console or Console(markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


class SummaryTable:
    """The report as one table of two columns."""

    name = "summary"

    def render(self, report: Report) -> str:
        """The text."""
        return text_of(summary(report))


class AblationTable:
    """What each step did to the output on held-out samples; "not kept" shows what it would have done."""

    name = "ablation"

    def render(self, report: Report) -> str:
        """The text."""
        return text_of(ablation(report))


class SensitivityTable:
    """SQNR in dB by kind (rows) and block (columns); the worst of each kind's blocks is what the rows are sorted by."""

    name = "sensitivity"

    def render(self, report: Report) -> str:
        """The text; empty where no sensitivities were measured."""
        return "" if report.sensitivity is None else text_of(sensitivities(report))


def summary(report: Report) -> Table:
    """What ``SummaryTable`` shows."""
    packages = report.environment.packages
    table = Table(title=f"onnxvitq {packages['onnxvitq']}: {report.output}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("blocks, attentions", f"{report.graph.blocks}, {report.graph.attention}")
    for name, counts in _counts(report):
        table.add_row(name, _kernels(counts))
    table.add_row("inputs", _inputs(report))
    for entry in _left_in_float(report):
        table.add_row("  in float", entry)
    table.add_row("bits", _bits(report.bits, edges_at_8_bits=report.config["edges_at_8_bits"]))
    table.add_row("without VNNI", _saturation(report.saturation))
    compare, size = report.compare, report.size_mb
    agreement = compare.top1_agreement
    decisions = "" if agreement is None else f", top-1 agreement {100 * agreement:.2f} %"
    lost = "lost: " if compare.lost else ""
    figures = f"{lost}SQNR {compare.sqnr_db} dB, cosine {compare.cosine:.5f}{decisions} ({compare.samples} samples)"
    table.add_row("against float", figures)
    table.add_row("optimised against plain", f"{100 * compare.optimised_vs_plain:.3g} % of the output's norm")
    table.add_row(
        "size",
        f"{size.float_model:.2f} MB -> {size.quantized:.2f} MB ({100 * size.quantized / size.float_model:.1f} %); "
        f"{report.bits.expected_mb:.2f} by weights x bits and other values",
    )
    for step in report.steps:
        table.add_row(f"step {step.name}", _kept(step))
    if report.precision is not None:
        table.add_row("mixed precision", _precision(report.precision))
    if report.quality is not None:
        table.add_row("decisions lost", promise_text(report.quality))
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report.to_dict()["seconds"].items())
    table.add_row("seconds", seconds)
    return table


def ablation(report: Report) -> Table:
    """What ``AblationTable`` shows."""
    table = Table(title="steps, output on held-out calibration samples", title_justify="left")
    for name in ("step", "part", "kept", "SQNR before, dB", "SQNR after, dB", "gain, dB", "agreement after, %", "s"):
        table.add_column(name, overflow="fold")
    for step in report.steps:
        agreement = "" if step.agreement is None else f"{100 * step.agreement:.2f}"
        table.add_row(step.name, "", *_gain(step), agreement, f"{step.seconds:.1f}")
        for part in step.parts:
            if part.before is not None:  # the others were not decided by the output
                table.add_row("", part.part, *_gain(part), "", "")
    return table


def sensitivities(report: Report) -> Table:
    """What ``SensitivityTable`` shows."""
    measured = report.sensitivity
    assert measured is not None  # the renderer asked
    title = f"Output SQNR in dB with one kind of site quantized ({measured.output}, {measured.samples} samples)"
    table = Table(title=title, title_justify="left")
    blocks = sorted({part.block for part in measured.parts}, key=lambda block: (block is not None, block or 0))
    table.add_column("kind", overflow="fold")
    table.add_column("bits", overflow="fold")
    for block in blocks:
        table.add_column("outside" if block is None else str(block), justify="right", overflow="fold")
    kinds: dict[str, dict[int | None, SiteSensitivity]] = {}
    for part in measured.parts:
        kinds.setdefault(part.kind, {})[part.block] = part
    for kind, parts in sorted(kinds.items(), key=lambda item: min(part.sqnr_db for part in item[1].values())):
        cells = [f"{parts[block].sqnr_db:.1f}" if block in parts else "" for block in blocks]
        bits = sorted({part.bits for part in parts.values()})
        table.add_row(kind, ", ".join(map(str, bits)), *cells)
    return table


def promise_text(quality: PromiseReport) -> str:
    """The drop with its sampling error, what was allowed, and what it took."""
    drop, data = quality.after, quality.data
    low, high = (100 * bound for bound in drop.interval)
    lost = f"{drop.lost} lost, {drop.gained} gained" if data.labelled else f"{drop.lost}"
    text = (
        f"{lost} of {drop.samples} by {data.source} (95 % interval {low:.2g} to {high:.3g} %), "
        f"expected {100 * drop.expected:.2g} %, with 95 % certainty at most {100 * drop.bound:.2g} %, "
        f"allowed {100 * quality.max_drop:.3g} %"
    )
    done = {"raise": "raised to 8 bits", "float": "returned to float"}
    changes = Counter(change.action for change in quality.changes)
    return "; ".join([text, *(f"{count} {done[action]}" for action, count in changes.items())])


def _counts(report: Report) -> list[tuple[str, LayerCounts]]:
    """Kinds of layers by their names in the table; other products only where there are some."""
    audit = report.audit
    rows = [("linears", audit.linears), ("attention products", audit.attention_products)]
    if audit.other_products.found:
        rows.append(("other products", audit.other_products))
    return [*rows, ("patch embedding", audit.patch_embedding)]


def _kernels(counts: LayerCounts) -> str:
    dynamic = f", {counts.dynamic} of them dynamic" if counts.dynamic else ""
    simulated = f", {counts.simulated} simulated in float" if counts.simulated else ""
    integer = f"{counts.integer_kernels} on integer kernels{dynamic}{simulated}"
    return f"{counts.found} found, {counts.quantized} quantized, {integer}"


def _inputs(report: Report) -> str:
    shapes = report.audit.input_shapes.items()
    described = (f"{name} {['?' if size is None else size for size in shape]}" for name, shape in shapes)
    return ", ".join(described).replace("'", "")


def _kept(step: StepRecord) -> str:
    kept = f"kept {step.kept} of {step.layers}"
    if step.before is None or step.after is None:
        return kept
    return f"{kept}: held-out SQNR {step.before:.2f} -> {step.after:.2f} dB"


def _gain(entry: StepRecord | Part) -> tuple[str, str, str, str]:
    before, after = entry.before, entry.after
    gain = None if before is None or after is None else after - before
    figures = ["" if value is None else f"{value:.2f}" for value in (before, after, gain)]
    return ("yes" if entry.accepted else "no", figures[0], figures[1], figures[2])


def _saturation(found: SaturationReport) -> str:
    """What processors that add two products of integers in 16 bits make of the model."""
    if not found.layers:
        return "no product saturates: the same outputs on every processor"
    worst = f"{found.layers[0].role}, {100 * found.layers[0].cut:.3g} % of its sums"
    risk = f"{found.at_risk} of {found.looked_at} linears saturate on calibration data (worst: {worst})"
    return (
        f"WRONG on AVX2 and AVX512 alone: {risk}; --target auto limits weights"
        if found.at_risk
        else f"{len(found.layers)} of {found.looked_at} linears saturate for some input, none on calibration data"
    )


def _bits(bits: BitsReport, *, edges_at_8_bits: bool) -> str:
    """The most frequent width, and which layers have another one."""
    layers: dict[str, list[str]] = {}
    for layer in bits.layers:
        layers.setdefault(layer.bits, []).append(layer.role)
    ordered = sorted(layers.items(), key=lambda entry: -len(entry[1]))
    texts = [f"{width} in {len(roles)} linears" for width, roles in ordered[:1]]
    for width, roles in ordered[1:]:
        named = ", ".join(dict.fromkeys(roles[:LISTED])) + (", ..." if len(roles) > LISTED else "")
        texts.append(f"{width} in {len(roles)}: {named}")
    if edges_at_8_bits and len(ordered) > 1:
        texts.append("patch embedding and head keep 8 bits unless told otherwise (--no-edges-at-8-bits)")
    return "; ".join(texts) or "no linear is quantized"


def _precision(precision: PrecisionReport) -> str:
    chosen = precision.chosen
    counts = Counter(chosen.bits.values())
    widths = ", ".join(f"{count} of {bits}" for bits, count in sorted(counts.items()))
    refused = "" if precision.mixed else "; as good as the best choice, which promises too little more"
    return (
        f"{chosen.average_bits:.2f} bits a weight ({precision.granularity}s: {widths} bits) by {precision.criterion} "
        f"error; before the fit {chosen.measured_db:.1f} dB, predicted {chosen.predicted_db:.1f} dB{refused}"
    )


def _left_in_float(report: Report) -> list[str]:
    audit = report.audit
    kinds = (audit.linears, audit.patch_embedding, audit.attention_products, audit.other_products)
    entries = [f"{layer.name}: {layer.reason}" for counts in kinds for layer in counts.in_float]
    entries += [f"{node.name} ({node.op}): {node.reason}" for node in report.graph.unmatched]
    more = len(entries) - LISTED
    return entries[:LISTED] + ([f"and {more} more, named in the JSON report"] if more > 0 else [])
