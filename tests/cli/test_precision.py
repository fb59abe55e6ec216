"""The options about bits and sensitivity, from the command line to the files."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commandline import run_cli
from PIL import Image

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
    assert {"size_mb", "average_bits", "predicted_db", "omega"} <= set(found["precision"]["front"][0])
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
    ran = run_cli(capsys, *job, "--bits", "w2a8", "--max-drop", "1%")
    assert (ran.code, ran.err) == (0, "")
    assert "raised" in ran.out
    assert "held-out calibration samples" in ran.out


def test_a_promise_to_lose_nothing_is_kept_in_float(job: tuple[object, ...], capsys: Capture) -> None:
    ran = run_cli(capsys, *job, "--bits", "w2a8", "--max-drop", "0%", "--json")
    assert ran.code == 0
    quality = json.loads(ran.out)["quality"]
    assert quality["kept"]
    assert "float" in {change["action"] for change in quality["changes"]}


@pytest.fixture
def others(images: Path, vit_file: Path, tmp_path: Path) -> Path:
    """Other images than those of calibration, in folders by what the float model says of them; a few in a wrong one."""
    rng = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(vit_file, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[-1]
    for index, file in enumerate(sorted(images.iterdir())):
        pixels = np.clip(np.asarray(Image.open(file)) + rng.normal(0, 8, (20, 24, 3)), 0, 255).astype(np.uint8)
        small = np.asarray(Image.fromarray(pixels).resize((side, side)), np.float32).transpose(2, 0, 1)[None]
        scores = session.run(None, {session.get_inputs()[0].name: (small / 255 - 0.5) / 0.25})[0]
        folder = tmp_path / "others" / str(int(scores.argmax()) if index % 8 else 0)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "others"


@pytest.mark.parametrize("labelled", [True, False])
def test_other_data_judge(
    job: tuple[object, ...], capsys: Capture, tmp_path: Path, others: Path, labelled: bool
) -> None:
    if not labelled:
        flat = tmp_path / "flat"
        flat.mkdir()
        for file in others.rglob("*.png"):
            file.rename(flat / file.name)
    data = others if labelled else tmp_path / "flat"
    ran = run_cli(capsys, *job, "--max-drop", "50%", "--eval", data, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    quality = report["quality"]
    assert (quality["samples"], quality["judge"]["labelled"]) == (16, labelled)
    assert str(data) in quality["judge"]["source"]
    assert quality["interval"][0] <= quality["drop"] <= quality["interval"][1]
    assert report["config"]["judged_on"] == str(data)
    recipe = json.loads(next(p.value for p in onnx.load(tmp_path / "int8.onnx").metadata_props if "recipe" in p.key))
    assert recipe["config"]["judged_on"] is None
    assert len(recipe["judge_sha256"]) == 64


def test_data_that_are_calibrated_with_do_not_judge(
    job: tuple[object, ...], capsys: Capture, tmp_path: Path, images: Path, others: Path
) -> None:
    same = run_cli(capsys, *job, "--max-drop", "1%", "--eval", f"{images}/")
    assert same.code == 2
    assert "expected other data than those of calibration, got the same" in same.err
    first = sorted(images.iterdir())[0]
    (others / "0" / "copy.bmp").parent.mkdir(exist_ok=True)
    Image.open(first).save(others / "0" / "copy.bmp")
    shared = run_cli(capsys, *job, "--max-drop", "1%", "--eval", others)
    assert shared.code == 2
    assert "expected samples that are not calibrated with, got 1 of 17 that are" in shared.err
    assert shared.err.count("\n") == 1
    assert not (tmp_path / "int8.onnx").exists()


def test_unreadable_images_that_should_judge_are_named(job: tuple[object, ...], capsys: Capture, others: Path) -> None:
    (others / "0" / "broken.png").write_bytes(b"")
    ran = run_cli(capsys, *job, "--max-drop", "50%", "--eval", others)
    assert ran.code == 0
    assert "skipped 0/broken.png: the file is empty" in ran.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--target-size", "12 apples"), "expected a size such as 12MB"),
        (("--target-size", "1kB"), "target_size: expected at least"),
        (("--target-size", "1MB", "--average-bits", "4"), "expected one budget"),
        (("--average-bits", "1"), "average_bits: expected 2 to 32"),
        (("--bit-candidates", "9", "--average-bits", "4"), "bit_candidates: expected one of"),
        (("--eval", "data.npz"), "judged_on (--eval): expected max_drop as well"),
        (("--max-drop", "1%", "--eval", "missing"), "missing: expected a folder or a file"),
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
