"""Every method with every combination of result options ends in exit code 0 and prints and writes what can be parsed."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from commandline import run_cli

from onnxvitq import api
from onnxvitq.api import Result
from onnxvitq.cli.main import main
from onnxvitq.core.config import QuantConfig
from onnxvitq.fit import acceptance, exact_changes
from onnxvitq.report.records import StepRecord
from onnxvitq.report.renderers.as_csv import COLUMNS

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]
METHODS = {
    "search": (),
    "closed-form": ("--method", "closed-form"),
    "aiqvit": ("--method", "aiqvit", "--iterations", "2", "--branch-budget", "0.5"),
    "minmax": ("--objective", "minmax"),
}
BUDGETS = {"w4a8": ("--bits", "w4a8"), "budgets": ("--average-bits", "5", "--max-drop", "50%")}
# What is printed and what is written: every combination of these.
PRINTED = [
    tuple(flag for flag, wanted in zip(("--json", "--ablation", "--quiet"), chosen, strict=True) if wanted)
    for chosen in product((False, True), repeat=3)
]
SENSITIVITIES = (None, "s.csv", "s.json")


@pytest.fixture(params=[(method, budget) for method in METHODS for budget in BUDGETS], ids="-".join, scope="module")
def fitted(
    request: pytest.FixtureRequest, vit_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], Result]:
    """The options of one way to fit, and what comes of it; sensitivities are measured."""
    method, budget = request.param
    options = (*METHODS[method], *BUDGETS[budget], "--threads", "1", "--candidates", "4")
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        job = (vit_file, "--calib", images, "-o", folder / "out.onnx", "--sensitivity", folder / "s.csv")
        return options, result_of(patch, *job, *options)


def result_of(patch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """What the command has from ``api.quantize``."""
    results: list[Result] = []
    quantize = api.quantize

    def recorded(*given: Any, **named: Any) -> Result:
        results.append(quantize(*given, **named))
        return results[-1]

    patch.setattr(api, "quantize", recorded)
    assert main([*map(str, arguments), "--quiet"]) == 0
    return results[0]


@pytest.fixture
def command(
    fitted: tuple[tuple[str, ...], Result], vit_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[object]]:
    """A command line with more options; the fit was made before, once, sensitivities are in it where they are asked for."""
    options, result = fitted

    def quantize(model: Path, data: Path, output: Path, config: QuantConfig, **named: Any) -> Result:
        report = result.report if config.sensitivity else replace(result.report, sensitivity=None)
        return replace(result, report=report)

    monkeypatch.setattr(api, "quantize", quantize)
    return lambda *more: [vit_file, "--calib", images, *options, *more]


def test_every_combination_of_result_options(
    command: Callable[..., list[object]], capsys: Capture, tmp_path: Path
) -> None:
    for number, (flags, sensitivity, reported) in enumerate(product(PRINTED, SENSITIVITIES, (False, True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        table = None if sensitivity is None else folder / sensitivity
        report = folder / "report.json" if reported else None
        more = [*flags, "-o", folder / "out.onnx", *(("--sensitivity", table) if table else ())]
        ran = run_cli(capsys, *command(*more, *(("--report", report) if report else ())))
        assert (ran.code, ran.err) == (0, ""), flags
        check_printed(ran.out, flags, measured=table is not None)
        written = None if report is None else json.loads(report.read_text())
        assert written is None or ("sensitivity" in written) == (table is not None)
        if table is not None:
            check_sensitivities(table)


def check_printed(text: str, flags: tuple[str, ...], *, measured: bool) -> None:
    if "--json" in flags:
        described = json.loads(text)
        assert ("sensitivity" in described) == measured
        assert all(part["part"] for step in described["steps"] for part in step["parts"])
    elif "--quiet" in flags:
        assert text == ""
    else:
        assert "against float" in text
        assert ("steps, output on held-out" in text) == ("--ablation" in flags)
        assert ("one kind of site quantized" in text) == measured


def check_sensitivities(table: Path) -> None:
    text = table.read_text()
    if table.suffix == ".json":
        parts = json.loads(text)["parts"]
    else:
        parts = list(csv.DictReader(io.StringIO(text)))
        assert tuple(parts[0]) == COLUMNS
    assert len(parts) > 10
    assert sum(float(part["share"]) for part in parts) == pytest.approx(1, abs=1e-3)  # each rounded to five digits


def check_steps(steps: tuple[StepRecord, ...]) -> None:
    for step in steps:
        assert 0 <= step.kept <= step.layers, step.name
        assert step.accepted == (step.kept > 0), step.name
        assert all(part.part for part in step.parts), step.name
        if not step.accepted:
            assert not any(part.accepted for part in step.parts), step.name


def test_what_is_said_to_be_kept_was_accepted(fitted: tuple[tuple[str, ...], Result]) -> None:
    _, result = fitted
    check_steps(result.report.steps)


@pytest.mark.parametrize(
    "method", ["search", "closed-form", "aiqvit"]
)  # minmax evaluates no output: it rejects nothing
def test_of_steps_that_are_rejected_nothing_is_kept(
    vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    for module in (acceptance, exact_changes):
        monkeypatch.setattr(module, "does_no_harm", lambda *_: False)
    monkeypatch.setattr(acceptance, "DOUBT_DB", -1000.0)  # no part of a search gains so much
    job = (vit_file, "--calib", images, "-o", tmp_path / "out.onnx", *BUDGETS["w4a8"], "--threads", "1")
    steps = result_of(monkeypatch, *job, *METHODS[method]).report.steps
    check_steps(steps)
    assert [step.name for step in steps if step.accepted and step.name not in ("minmax", "attention")] == []
    assert len(steps) > 3
