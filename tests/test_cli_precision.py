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


def test_mixed_precision_is_reported_and_printed(job: tuple[object, ...], capsys: Capture, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ran = run_cli(
        capsys, *job, "--average-bits", 5, "--granularity", "module", "--criterion", "nuclear", "--report", report
    )
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(report.read_text())
    assert (found["config"]["average_bits"], found["config"]["granularity"]) == (5.0, "module")
    assert found["precision"]["chosen"]["average_bits"] <= 5
    assert {"size_mb", "average_bits", "predicted_db", "omega"} == set(found["precision"]["front"][0])
    assert "bits a weight" in ran.out


def test_a_target_size_is_met(job: tuple[object, ...], capsys: Capture) -> None:
    size = json.loads(run_cli(capsys, *job, "--json").out)["size_mb"]["quantized"]
    ran = run_cli(capsys, *job, "--target-size", f"{1000 * size + 4:.1f}kB", "--bit-candidates", "4", "8", "--json")
    assert json.loads(ran.out)["size_mb"]["quantized"] <= size + 0.004


def test_a_drop_that_a_budget_forbids_to_mend_is_stated(
    job: tuple[object, ...], capsys: Capture, tmp_path: Path
) -> None:
    ran = run_cli(capsys, *job, "--average-bits", "2", "--max-drop", "0%")
    assert ran.code == 3
    assert ran.err.startswith("onnxvitq: written, but too many decisions are lost: ")
    assert "95 % interval" in ran.err
    assert (tmp_path / "int8.onnx").exists()


def test_a_kept_promise_is_printed(job: tuple[object, ...], capsys: Capture) -> None:
    ran = run_cli(capsys, *job, "--bits", "w2a8", "--max-drop", "0%")
    assert (ran.code, ran.err) == (0, "")
    assert "raised" in ran.out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--target-size", "12 apples"), "expected a size such as 12MB"),
        (("--target-size", "1kB"), "target_size: expected at least"),
        (("--target-size", "1MB", "--average-bits", "4"), "expected one budget"),
        (("--average-bits", "1"), "average_bits: expected 2 to 32"),
        (("--bit-candidates", "9", "--average-bits", "4"), "bit_candidates: expected one of"),
        (("--max-drop", "little"), "expected a share such as 0.5%"),
        (("--max-drop", "200%"), "max_drop: expected 0 to 1"),
    ],
)
def test_wrong_use_is_one_line(
    job: tuple[object, ...], capsys: Capture, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    ran = run_cli(capsys, *job, *options)
    assert ran.code == 2
    assert problem in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(("text", "expected"), [("12MB", 12.0), ("500kB", 0.5), ("2gb", 2000.0), ("1500000", 1.5)])
def test_sizes(text: str, expected: float) -> None:
    from onnxvitq.cli.arguments import megabytes

    assert megabytes(text) == pytest.approx(expected)
