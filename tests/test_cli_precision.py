"""The options about bits and sensitivity, from the command line to the files."""

import csv
import json
from pathlib import Path

import pytest
from commandline import run_cli

Capture = pytest.CaptureFixture[str]
QUICK = ("--objective", "minmax", "--threads", "1", "--mean", "0.5", "--std", "0.25")


@pytest.fixture
def job(vit_file: Path, images: Path, tmp_path: Path) -> tuple[object, ...]:
    return (vit_file, "--calib", images, "-o", tmp_path / "int8.onnx", *QUICK)


def test_sensitivity_is_written_printed_and_reported(job: tuple[object, ...], capsys: Capture, tmp_path: Path) -> None:
    table, report = tmp_path / "s.csv", tmp_path / "report.json"
    ran = run_cli(capsys, *job, "--sensitivity", table, "--report", report)
    assert (ran.code, ran.err) == (0, "")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    described = json.loads(report.read_text())["sensitivity"]
    assert [float(row["sqnr_db"]) for row in rows] == [part["sqnr_db"] for part in described["parts"]]
    kinds = {row["kind"] for row in rows if row["block"] == "1"}
    assert kinds == {
        *(f"attn.{name}.weight" for name in ("q", "k", "v", "proj")),
        *(f"attn.{name}" for name in ("q+k+v.input", "proj.input", "query", "key", "probs", "value")),
        *(f"mlp.{name}.{side}" for name in ("fc1", "fc2") for side in ("input", "weight")),
    }
    assert {row["kind"] for row in rows if not row["block"]} == {
        f"{name}.{side}" for name in ("patch_embed", "head") for side in ("input", "weight")
    }
    assert (described["output"], described["samples"]) == ("logits", 4)
    assert all(20 < part["sqnr_db"] <= 120 for part in described["parts"])
    assert "mlp.fc2.input" in ran.out


def test_sensitivity_as_json(job: tuple[object, ...], capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    ran = run_cli(capsys, *job, "--sensitivity", path, "--json")
    assert json.loads(path.read_text()) == json.loads(ran.out)["sensitivity"]


def test_sensitivity_is_not_measured_unasked(job: tuple[object, ...], capsys: Capture) -> None:
    assert "sensitivity" not in json.loads(run_cli(capsys, *job, "--json").out)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("s.txt", "expected a .csv or a .json file"),
        ("int8.onnx", "expected a .csv"),
        ("missing/s.csv", "does not exist"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    job: tuple[object, ...], capsys: Capture, tmp_path: Path, file: str, problem: str
) -> None:
    ran = run_cli(capsys, *job, "--sensitivity", tmp_path / file)
    assert ran.code == 2
    assert problem in ran.err
    assert not (tmp_path / "int8.onnx").exists()


def test_the_report_is_no_place_for_it(job: tuple[object, ...], capsys: Capture, tmp_path: Path) -> None:
    same = tmp_path / "report.json"
    ran = run_cli(capsys, *job, "--sensitivity", same, "--report", same)
    assert ran.code == 2
    assert "--report names too" in ran.err
