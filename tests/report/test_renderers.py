"""What each renderer makes of a report; one from outside the package is a single object."""

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from onnxvitq.api import Result
from onnxvitq.core.errors import ConfigError
from onnxvitq.report.model_records import FloatLayer, LayerCounts, UnmatchedNode
from onnxvitq.report.records import Part, SensitivityReport, SiteSensitivity, StepRecord
from onnxvitq.report.renderers.as_csv import COLUMNS, SensitivityCsv
from onnxvitq.report.renderers.registry import RENDERERS, Renderer, renderer
from onnxvitq.report.renderers.tables import ablation, sensitivities, summary
from onnxvitq.report.renderers.tables import text_of as table_text
from onnxvitq.report.report import Report


def shown(table: Table, width: int) -> str:
    return table_text(table, Console(width=width, markup=False, emoji=False, highlight=False))


def text_of(report: Report, width: int = 200) -> str:
    return shown(summary(report), width)


def in_float(report: Report, linears: tuple[FloatLayer, ...]) -> Report:
    """With these linears in float, and no attention product: this random model's may gain or lose by a hair."""
    audit = report.audit
    products = replace(audit.attention_products, in_float=())
    return replace(
        report, audit=replace(audit, linears=replace(audit.linears, in_float=linears), attention_products=products)
    )


def unmatched(report: Report) -> Report:
    node = UnmatchedNode(name="conv", op="Conv", reason="a convolution")
    return replace(report, graph=replace(report.graph, unmatched=(node,)))


@pytest.fixture
def report(quantized: Result) -> Report:
    return quantized.report


def test_the_table_says_what_matters(report: Report) -> None:
    text = text_of(report)
    for part in ("13 found, 13 quantized, 13 on integer kernels", "4 found", "top-1 agreement", "MB ->", "step scales"):
        assert part in text
    assert f"SQNR {report.compare.sqnr_db} dB" in text
    assert report.output in text


def test_the_table_names_layers_in_float(report: Report) -> None:
    layers = tuple(FloatLayer(name=f"fc{i}", reason="excluded by '[a-z]*'") for i in range(12))
    text = text_of(unmatched(in_float(report, layers)))
    assert "fc0: excluded by '[a-z]*'" in text
    assert "fc7" in text
    assert "fc8" not in text
    assert "and 5 more, named in the JSON report" in text


def test_the_table_names_unmatched_nodes(report: Report) -> None:
    text = text_of(unmatched(report))
    assert "conv (Conv): a convolution" in text
    assert "more, named" not in text


def test_the_table_speaks_of_other_products_where_there_are_some(report: Report) -> None:
    assert "other products" not in text_of(report)
    reason = "as integers it costs 9.0 dB of the output's SQNR"
    products = LayerCounts(found=2, quantized=1, integer_kernels=1, in_float=(FloatLayer(name="gram", reason=reason),))
    report = replace(report, audit=replace(report.audit, other_products=products))
    text = text_of(report)
    assert "other products" in text
    assert "2 found, 1 quantized, 1 on integer kernels" in text
    assert f"gram: {reason}" in text


def test_the_table_without_classes(report: Report) -> None:
    without = replace(report, compare=replace(report.compare, top1_agreement=None))
    assert "top-1 agreement" in text_of(report)
    assert "agreement" not in text_of(without)


def test_a_narrow_terminal_cuts_nothing(report: Report) -> None:
    text = text_of(in_float(report, (FloatLayer(name="/a/very/long/name/" * 4 + "MatMul", reason="why"),)), width=60)
    assert "…" not in text
    assert "MatMul" in "".join(line.split("│")[-2].strip() for line in text.splitlines() if "│" in line)


def test_the_ablation_names_every_step_with_what_it_did(report: Report) -> None:
    part = Part(part="fc1.input", accepted=False, before=30.0, after=29.25)
    branch = Part(part="fc1", figures={"rank": 4})  # not decided by the output: no line
    steps = (
        StepRecord(
            name="scales",
            accepted=True,
            before=30.0,
            after=31.5,
            kept=1,
            layers=2,
            parts=(part, branch),
            agreement=0.75,
            seconds=2.34,
        ),
        StepRecord(name="weights", accepted=False, before=31.5, after=None, kept=0, layers=1, seconds=0.04),
    )
    text = shown(ablation(replace(report, steps=steps)), width=160)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert lines == [
        ["scales", "", "yes", "30.00", "31.50", "1.50", "75.00", "2.3"],
        ["", "fc1.input", "no", "30.00", "29.25", "-0.75", "", ""],
        ["weights", "", "no", "31.50", "", "", "", "0.0"],
    ]


SENSITIVITY = SensitivityReport(
    output="logits",
    outputs=1,
    samples=8,
    parts=tuple(
        SiteSensitivity(block=block, kind=kind, tensors=("a", "b, c"), bits=8, sqnr_db=sqnr, agreement=1.0, share=0.25)
        for block, kind, sqnr in (
            (None, "head.input", 40.0),
            (0, "attn.q+k+v.input", 50.0),
            (1, "attn.q+k+v.input", 30.0),
        )
    ),
)


def test_sensitivities_have_one_line_of_csv_a_part(report: Report) -> None:
    text = SensitivityCsv().render(replace(report, sensitivity=SENSITIVITY))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["block"], row["kind"], row["sqnr_db"]) for row in rows] == [
        ("", "head.input", "40.0"),
        ("0", "attn.q+k+v.input", "50.0"),
        ("1", "attn.q+k+v.input", "30.0"),
    ]
    assert rows[1]["tensors"] == "a b, c"


def test_sensitivities_have_a_row_a_kind_the_worst_first_and_a_column_a_block(report: Report) -> None:
    table = sensitivities(replace(report, sensitivity=SENSITIVITY))
    assert [str(column.header) for column in table.columns] == ["kind", "bits", "outside", "0", "1"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["attn.q+k+v.input", "head.input"]
    assert [column[0] for column in cells[2:]] == ["", "50.0", "30.0"]
    assert [column[1] for column in cells[2:]] == ["40.0", "", ""]


@pytest.mark.parametrize("known", RENDERERS, ids=lambda known: known.name)
def test_every_renderer_takes_a_report_with_and_without_sensitivities(report: Report, known: Renderer) -> None:
    assert report.sensitivity is None
    with_them = replace(report, sensitivity=SENSITIVITY)
    assert isinstance(known.render(report), str)
    assert known.render(with_them).endswith("\n")
    assert renderer(known.name) is known


def test_a_renderer_from_outside_is_one_object(report: Report) -> None:
    class Markdown:
        name = "markdown"

        def render(self, report: Report) -> str:
            rows = (f"| {step.name} | {step.kept} of {step.layers} |\n" for step in report.steps)
            return "".join(("| step | kept |\n| --- | --- |\n", *rows))

    mine = Markdown()
    assert renderer("markdown", among=(*RENDERERS, mine)) is mine
    assert mine.render(report).splitlines()[2].startswith("| minmax | ")
    with pytest.raises(ConfigError, match=r"renderer: expected json, .*, got markdown"):
        renderer("markdown")
