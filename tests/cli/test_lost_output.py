"""An output of which nothing is left is said, whatever is printed, and fails under --strict."""

from dataclasses import replace

import pytest

from onnxvitq.api import Result
from onnxvitq.cli.results import exit_code, print_results
from onnxvitq.report.renderers.registry import renderer
from onnxvitq.report.report import Report


def with_sqnr(result: Result, sqnr_db: float) -> Report:
    return replace(result.report, compare=replace(result.report.compare, sqnr_db=sqnr_db))


@pytest.mark.parametrize(("sqnr_db", "lost"), [(-4.8, True), (0.0, True), (2.99, True), (3.0, False), (40.0, False)])
def test_an_output_below_the_floor_is_lost(
    quantized: Result, sqnr_db: float, lost: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = with_sqnr(quantized, sqnr_db)
    assert (exit_code(report, strict=True), exit_code(report, strict=False)) == (3 if lost else 0, 0)
    said = capsys.readouterr().err
    assert said.count("\n") == lost
    assert (f"output 'logits' is lost: {sqnr_db} dB" in said) == lost
    assert ("lost: SQNR" in renderer("summary").render(report)) == lost


@pytest.mark.parametrize("printed", ["json", "quiet", "tables"])
def test_it_is_a_warning_however_results_are_printed(
    quantized: Result, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for sqnr_db, warned in ((1.0, True), (30.0, False)):
        report = with_sqnr(quantized, sqnr_db)
        print_results(report, as_json=printed == "json", quiet=printed == "quiet", ablation=False)
        assert ("warning: output 'logits' is lost" in capsys.readouterr().err) == warned
