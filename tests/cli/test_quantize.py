"""The command line on good input: what is written, what is printed where, and every spelling of an option."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commandline import ATTENTION, contents, run_cli, save_attention
from PIL import Image

import onnxvitq
from onnxvitq import api
from onnxvitq.api import PreprocessOptions, Result
from onnxvitq.cli import console
from onnxvitq.cli.main import main
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.preprocess import resolve_preprocessing
from onnxvitq.report.report import Report
from onnxvitq.runtime.session import Session
from onnxvitq.targets.ort_cpu import kernels as auditing

Capture = pytest.CaptureFixture[str]
REASON = "an Einsum that is no product of two matrices, or of unknown shape"
QUICK = ("--objective", "minmax", "--no-bias-correction")  # for tests that are not about the fit


@pytest.fixture
def work(vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: model.onnx and a folder with six images."""
    shutil.copy(vit_file, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for image in sorted(images.iterdir())[:6]:
        shutil.copy(image, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report_of(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """What a command prints with --json; it must succeed and print nothing else."""
    ran = run_cli(capsys, *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert isinstance(report, dict)
    return report


def quick_report(capsys: Capture, *arguments: object) -> dict[str, Any]:
    return report_of(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", *QUICK, *arguments)


# ------------------------------------------------------------------------------------------------------------ main job


def test_main_job_writes_the_model_and_the_report(work: Path, capsys: Capture) -> None:
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", "--report", "report.json")
    assert (ran.code, ran.err) == (0, "")
    assert {path.name for path in work.iterdir()} == {"images", "model.onnx", "out.onnx", "report.json"}
    onnx.checker.check_model("out.onnx", full_check=True)
    operators = {node.op_type for node in onnx.load("out.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Gemm"} <= operators
    assert "13 found, 13 quantized, 13 on integer kernels" in ran.out
    assert "preprocessing: RGB; resize to 16x16 (bicubic)" in ran.out
    assert "from the model's input" in ran.out


def test_report_has_every_documented_key(work: Path, capsys: Capture) -> None:
    run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", "--report", "report.json", *QUICK)
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert (report["blocks"], report["attention"]) == (2, 2)
    assert report["linears"] == {
        "found": 13,
        "quantized": 13,
        "integer_kernels": 13,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert report["unmatched"] == []
    assert {"sqnr_db", "cosine", "top1_agreement", "optimised_vs_plain"} <= set(report["compare"])
    assert 0 <= report["compare"]["top1_agreement"] <= 1
    assert report["size_mb"] == {
        "float": pytest.approx(Path("model.onnx").stat().st_size / 1e6, abs=5e-5),  # four decimals
        "quantized": pytest.approx(Path("out.onnx").stat().st_size / 1e6, abs=5e-5),
    }
    assert report["seconds"]["total"] > 0
    assert all({"name", "accepted", "before", "after"} <= set(step) for step in report["steps"])
    assert report["environment"]["onnxruntime"]
    assert (report["model"], report["output"]) == ("model.onnx", "out.onnx")
    assert report["calibration"]["samples"] == report["compare"]["samples"] == 6
    assert report["config"]["objective"] == "minmax"


def test_static_batch_freezes_the_written_model_and_the_report_says_so(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--static-batch", 4)
    [value] = onnx.load("out.onnx").graph.input
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [4, 3, 16, 16]
    assert report["input_shapes"] == {value.name: [4, 3, 16, 16]}
    assert report["audit_passed"]
    assert report["config"]["static_batch"] == 4
    assert "[4, 3, 16, 16]" in run_cli(capsys, "model.onnx", "--calib", "images", *QUICK, "--static-batch", 4).out
    again = run_cli(capsys, "out.onnx", "--calib", "images", "-o", "again.onnx", "--static-batch", 2)
    assert (again.code, again.out) == (2, "")


@pytest.mark.parametrize("flag", ["--external-data", "--use-external-data-format", "--use_external_data_format"])
def test_weights_in_a_second_file_are_the_same_model(work: Path, capsys: Capture, flag: str) -> None:
    quick_report(capsys)
    feed = {"image": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)}
    one = Session(Path("out.onnx")).run(feed)[0]
    report = quick_report(capsys, flag)
    assert np.array_equal(Session(Path("out.onnx")).run(feed)[0], one)
    [data] = work.glob("out.onnx.*.data")
    assert {path.name for path in work.iterdir()} == {"images", "model.onnx", "out.onnx", data.name}
    assert report["size_mb"]["quantized"] == round((Path("out.onnx").stat().st_size + data.stat().st_size) / 1e6, 4)
    assert report["config"]["external_data"]
    assert report["audit_passed"]
    quick_report(capsys)  # one file again
    assert {path.name for path in work.iterdir()} == {"images", "model.onnx", "out.onnx"}


def test_a_model_in_two_files_can_be_inspected_and_benchmarked(work: Path, capsys: Capture) -> None:
    quick_report(capsys, "--external-data")
    assert run_cli(capsys, "bench", "model.onnx", "out.onnx", "--runs", 1, "--threads", 1).code == 0
    again = run_cli(capsys, "out.onnx", "--calib", "images", "-o", "again.onnx")
    assert again.code == 2
    assert "already quantized" in again.err


def test_json_prints_what_the_report_file_holds(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--report", "report.json")
    assert json.loads(Path("report.json").read_text(encoding="utf-8")) == report


def test_unmatched_nodes_are_named_with_operator_and_reason(work: Path, capsys: Capture) -> None:
    text = ATTENTION.replace(
        "y = MatMul(context, Wo)",
        'gram = Einsum<equation = "nij,nij,nij->nij">(context, context, context) y = Relu(gram)',
    )
    save_attention(Path("einsum.onnx"), text)
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32))
    report = report_of(capsys, "einsum.onnx", "--calib", "data.npz", "-o", "out.onnx")
    assert report["unmatched"] == [{"name": "gram", "op": "Einsum", "reason": REASON}]
    ran = run_cli(capsys, "einsum.onnx", "--calib", "data.npz", "-o", "out.onnx")
    assert f"gram (Einsum): {REASON[:20]}" in ran.out  # the table wraps it


def test_output_has_a_default_name(work: Path, capsys: Capture) -> None:
    report = report_of(capsys, "model.onnx", "--calib", "images", *QUICK)
    assert report["output"] == "model_int8.onnx"
    assert Path("model_int8.onnx").is_file()


def test_an_older_output_is_replaced(work: Path, capsys: Capture) -> None:
    Path("out.onnx").write_bytes(b"old")
    quick_report(capsys)
    onnx.checker.check_model("out.onnx")


def test_an_output_that_is_a_link_is_replaced_and_its_target_left(work: Path, capsys: Capture) -> None:
    Path("target.onnx").write_bytes(b"old")
    Path("out.onnx").symlink_to("target.onnx")
    quick_report(capsys)
    onnx.checker.check_model("out.onnx")
    assert Path("target.onnx").read_bytes() == b"old"


def test_quiet_prints_nothing(work: Path, capsys: Capture) -> None:
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", "--quiet", *QUICK)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_skipped_images_are_named(work: Path, capsys: Capture) -> None:
    Path("images/broken.png").write_bytes(b"not pixels")
    Path("images/empty.jpg").write_bytes(b"")
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", "--json", *QUICK)
    assert ran.code == 0
    assert ran.err.splitlines() == [
        "onnxvitq: skipped broken.png: not an image",
        "onnxvitq: skipped empty.jpg: the file is empty",
    ]
    calibration = json.loads(ran.out)["calibration"]
    assert calibration["samples"] == 6
    assert calibration["skipped"] == [
        {"file": "broken.png", "reason": "not an image"},
        {"file": "empty.jpg", "reason": "the file is empty"},
    ]


def test_of_many_skipped_images_the_first_are_named(work: Path, capsys: Capture) -> None:
    for index in range(console.LISTED + 3):
        Path(f"images/broken{index}.png").write_bytes(b"not pixels")
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", "--json", *QUICK)
    lines = ran.err.splitlines()
    assert len(lines) == console.LISTED + 1
    assert lines[-1] == "onnxvitq: skipped 3 more, named in the JSON report"
    assert len(json.loads(ran.out)["calibration"]["skipped"]) == console.LISTED + 3


def test_progress_is_shown_in_a_terminal_only(work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("model.onnx", "--calib", "images", "-o", "out.onnx", "--objective", "minmax")  # bias correction is a fit
    assert run_cli(capsys, *command).err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # for rich, which draws the bar
    shown = run_cli(capsys, *command).err
    assert all(stage in shown for stage in ("calibrate", "fit", "compare"))
    assert "6/6" in shown
    assert run_cli(capsys, *command, "--quiet").err == ""
    monkeypatch.setenv("NO_COLOR", "1")  # no escape codes between the words of the line
    failed = run_cli(capsys, "model.onnx", "--calib", "nowhere", "-o", "out.onnx")
    assert (
        failed.err
        == "onnxvitq: error: nowhere: expected a folder or a file, got [Errno 2] No such file or directory: 'nowhere'\n"
    )


# ------------------------------------------------------------------------------------------------------------- options


@dataclass
class Recorder:
    """Stands in for api.quantize: keeps what it was called with."""

    report: Report
    model: Path = Path()
    data: Path = Path()
    output: Path = Path()
    config: QuantConfig = field(default_factory=QuantConfig)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)

    def __call__(self, model: Path, data: Path, output: Path, config: QuantConfig, **options: Any) -> "Recorder":
        self.model, self.data, self.output, self.config = model, data, output, config
        self.preprocess = options["preprocess"]
        return self


@pytest.fixture
def recorder(quantized: Result, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(quantized.report)
    monkeypatch.setattr(api, "quantize", recorder)
    return recorder


@pytest.mark.parametrize(
    "spelling",
    [
        ("-i", "model.onnx", "--calib", "images", "-o", "out.onnx"),
        ("--input", "model.onnx", "--calibration-data-path", "images", "--output", "out.onnx"),
        ("--calibration_data_path", "images", "--output=out.onnx", "model.onnx"),
        ("model.onnx", "--calibration_data_path=images", "--output=out.onnx"),
        ("model.onnx", "--calib=images", "-oout.onnx"),
    ],
)
def test_spellings_of_the_main_job(recorder: Recorder, capsys: Capture, spelling: tuple[str, ...]) -> None:
    report_of(capsys, *spelling)
    assert (recorder.model, recorder.data, recorder.output) == (Path("model.onnx"), Path("images"), Path("out.onnx"))


def test_input_by_option_does_the_main_job(work: Path, capsys: Capture) -> None:
    report = report_of(capsys, "-i", "model.onnx", "--calibration_data_path", "images", "-o", "out.onnx", *QUICK)
    assert (report["model"], report["calibration"]["samples"]) == ("model.onnx", 6)
    onnx.checker.check_model("out.onnx")


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("--num-samples", "3"), "num_samples", 3),
        (("--num_samples=3",), "num_samples", 3),
        (("--subset-size", "3"), "num_samples", 3),
        (("--samples", "3"), "num_samples", 3),
        (("--objective", "pearson"), "objective", "pearson"),
        (("--calibration_method", "minmax"), "objective", "minmax"),
        (("--weight_bits", "7"), "bits", "w7a8"),
        (("--reduce_range",), "bits", "w7a8"),
        (("--bits", "w6a6"), "bits", "w6a6"),
        (("--activation-bits", "4"), "bits", "w8a4"),
        (("--bits", "w4a6", "--reduce-range"), "bits", "w7a6"),
        (
            ("--bits-for", "*.fc2=w4a8", "--bits_for", "head=float"),
            "bit_overrides",
            (("*.fc2", "w4a8"), ("head", "float")),
        ),
        (("--no-edges-at-8-bits",), "edges_at_8_bits", False),
        (("--candidates", "9"), "candidates", 9),
        (("--rounds", "1"), "rounds", 1),
        (("--activations", "dynamic"), "activations", "dynamic"),
        (("--attention", "float"), "attention", "float"),
        (("--acceptance", "always"), "acceptance", "always"),
        (("--seed", "5"), "seed", 5),
        (("--threads=1",), "threads", 1),
        (("--no_bias_correction",), "skip", ("bias",)),
        (("--no_rebuild", "--no-bias-correction"), "skip", ("weights", "bias")),
        (("--skip", "softmax", "scales", "--no-rebuild"), "skip", ("softmax", "scales", "weights")),
        (("--also", "rotation", "--also", "weights"), "also", ("rotation", "weights")),
        (("--effort", "fast"), "effort", "fast"),
        (("--nodes_to_exclude", "head", "--nodes-to-exclude", "a", "b*"), "nodes_to_exclude", ("head", "a", "b*")),
    ],
)
def test_options_reach_the_configuration(
    recorder: Recorder, capsys: Capture, options: tuple[str, ...], key: str, value: Any
) -> None:
    report_of(capsys, "model.onnx", "--calib", "images", *options)
    assert recorder.config == replace(QuantConfig(), **{key: value})


def test_underscores_in_values_stay(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--report=a_report_of_mine.json")
    assert Path("a_report_of_mine.json").is_file()
    assert report["output"] == "out.onnx"


def test_num_samples_takes_fewer_images(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--num-samples", 2)
    assert report["calibration"]["samples"] == report["compare"]["samples"] == 2


def test_saved_configuration_gives_the_same_model(work: Path, capsys: Capture) -> None:
    options = ("--objective", "minmax", "--num-samples", 5, "--nodes-to-exclude", "head", "--weight-bits", 7)
    command = ("model.onnx", "--calib", "images", "-o")
    first = report_of(capsys, *command, "a.onnx", *options, "--save_config_file", "config.json")
    saved = json.loads(Path("config.json").read_text(encoding="utf-8"))
    assert saved == first["config"]
    assert (saved["num_samples"], saved["nodes_to_exclude"], saved["bits"]) == (5, ["head"], "w7a8")
    second = report_of(capsys, *command, "b.onnx", "--config", "config.json")
    assert second["config"] == saved
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_configuration_as_toml(work: Path, recorder: Recorder, capsys: Capture) -> None:
    Path("my_config.toml").write_text('seed = 3\nobjective = "ranking"\nnodes_to_exclude = ["head", "block0*"]\n')
    report_of(capsys, "model.onnx", "--calib", "images", "--config", "my_config.toml")
    assert recorder.config == QuantConfig(seed=3, objective="ranking", nodes_to_exclude=("head", "block0*"))


def test_the_command_line_wins_over_the_configuration_file(work: Path, recorder: Recorder, capsys: Capture) -> None:
    Path("config.json").write_text('{"seed": 3, "objective": "pearson", "candidates": 4, "skip": ["bias"]}')
    report_of(capsys, "model.onnx", "--calib", "images", "--config", "config.json", "--objective", "minmax")
    assert recorder.config == QuantConfig(seed=3, objective="minmax", candidates=4, skip=("bias",))


def test_configuration_can_be_saved_over_itself(work: Path, recorder: Recorder, capsys: Capture) -> None:
    Path("config.json").write_text('{"seed": 3}')
    command = ("model.onnx", "--calib", "images", "--config", "config.json", "--save-config-file", "config.json")
    report_of(capsys, *command)
    assert json.loads(Path("config.json").read_text()) == QuantConfig(seed=3).to_dict()


def test_excluded_role_stays_float_with_its_reason(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--nodes-to-exclude", "block1.mlp.fc2", "block0.attn.scores")
    assert report["linears"] == {
        "found": 13,
        "quantized": 12,
        "integer_kernels": 12,
        "dynamic": 0,
        "simulated": 0,
        "float": [{"name": "/blocks.1/fc2/MatMul", "reason": "excluded by 'block1.mlp.fc2'"}],
    }
    assert [entry["reason"] for entry in report["attention_products"]["float"]] == ["excluded by 'block0.attn.scores'"]
    assert report["audit_passed"]
    weights = {tensor.name for tensor in onnx.load("out.onnx").graph.initializer if tensor.data_type == 1}
    assert len([name for name in weights if "fc2" in name and "scale" not in name]) >= 1


def test_excluding_a_packed_node_excludes_its_parts(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--nodes-to-exclude", "/blocks.0/qkv/MatMul")
    assert len(report["linears"]["float"]) == 3


def test_a_pattern_is_printed_as_it_was_given(work: Path, capsys: Capture) -> None:
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", *QUICK, "--nodes-to-exclude", "[a-h]ead")
    assert ran.code == 0
    assert "excluded by '[a-h]ead'" in ran.out  # brackets are not markup


def test_attention_float(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--attention", "float")
    assert report["attention_products"]["quantized"] == report["attention_products"]["integer_kernels"] == 0
    assert {entry["reason"] for entry in report["attention_products"]["float"]} == {"attention kept float"}
    assert report["linears"]["integer_kernels"] == 13
    assert report["audit_passed"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--mean", "0.1", "0.2", "0.3", "--std", "0.5"), {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}),
        (("--mean=0.1,0.2,0.3",), {"mean": (0.1, 0.2, 0.3)}),
        (("--resize", "16x16"), {"resize": (16, 16)}),
        (("--resize", "20", "24", "--crop", "16", "16"), {"resize": (20, 24), "crop": (16, 16)}),
        (("--resize", "18"), {"resize": 18, "crop": (16, 16)}),
        (("--scale", "1/128", "--interpolation", "nearest"), {"scale": 1 / 128, "interpolation": "nearest"}),
        (("--color", "rgb"), {"mode": "RGB"}),
    ],
)
def test_preprocessing_options(
    recorder: Recorder, capsys: Capture, options: tuple[str, ...], expected: dict[str, object]
) -> None:
    report_of(capsys, "model.onnx", "--calib", "images", *options)
    spec = InputSpec(name="image", dtype="float32", shape=(None, 3, 16, 16))
    found, origin = resolve_preprocessing(spec, flags=recorder.preprocess.flags, config_file=None, metadata={})
    assert {name: getattr(found, name) for name in expected} == expected
    assert "from flags" in origin


def test_preprocessing_options_change_what_is_calibrated(work: Path, capsys: Capture) -> None:
    report = quick_report(capsys, "--mean", "0.1", "0.2", "0.3", "--resize", "16x16")
    assert report["calibration"]["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert "resize, mean from flags" in report["calibration"]["preprocessing_from"]
    other = Path("out.onnx").read_bytes()
    quick_report(capsys)
    assert Path("out.onnx").read_bytes() != other


def test_preprocessing_of_a_file_beside_the_model(work: Path, capsys: Capture) -> None:
    beside = {"do_resize": True, "size": {"height": 16, "width": 16}, "image_mean": [0.25] * 3, "image_std": [0.75] * 3}
    Path("preprocessor_config.json").write_text(json.dumps({**beside, "do_normalize": True, "do_rescale": True}))
    calibration = quick_report(capsys)["calibration"]
    assert calibration["preprocessing"]["mean"] == [0.25] * 3
    assert "from preprocessor_config.json" in calibration["preprocessing_from"]
    shutil.move("preprocessor_config.json", "elsewhere.json")
    assert quick_report(capsys)["calibration"]["preprocessing"]["mean"] != [0.25] * 3
    given = quick_report(capsys, "--preprocessor-config", "elsewhere.json", "--std", "0.5")["calibration"]
    assert (given["preprocessing"]["mean"], given["preprocessing"]["std"]) == ([0.25] * 3, [0.5] * 3)


# -------------------------------------------------------------------------------------------------------------- strict


def test_strict_passes_when_the_audit_does(work: Path, capsys: Capture) -> None:
    assert run_cli(capsys, "model.onnx", "--calib", "images", "-o", "out.onnx", *QUICK, "--strict", "--quiet").code == 0


def test_strict_exits_3_when_a_planned_layer_is_not_integer(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "INTEGER_KERNELS", auditing.INTEGER_KERNELS - {"QGemm"})
    command = ("model.onnx", "--calib", "images", "-o", "out.onnx", *QUICK, "--json")
    ran = run_cli(capsys, *command, "--strict")
    assert ran.code == 3
    assert ran.err == "onnxvitq: written, but the audit failed: a planned layer is not on an integer kernel\n"
    report = json.loads(ran.out)
    assert not report["audit_passed"]
    assert report["linears"]["integer_kernels"] == 0
    assert {entry["reason"] for entry in report["linears"]["float"]} == {auditing.NOT_FUSED}
    onnx.checker.check_model("out.onnx")
    assert run_cli(capsys, *command).code == 0  # without --strict the report says it, and that is all


# -------------------------------------------------------------------------------------------------------- sub-commands


def test_inspect_json_has_the_reports_names(work: Path, capsys: Capture) -> None:
    before = contents(work)
    described = report_of(capsys, "inspect", "model.onnx")
    assert contents(work) == before
    report = quick_report(capsys)
    for key in ("blocks", "attention", "unmatched", "norms", "model"):
        assert described[key] == report[key]
    assert described["linears"] == {"found": report["linears"]["found"]}
    assert described["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 3, 16, 16]}]
    assert described["outputs"] == ["logits"]
    attention = described["map"]["attentions"][0]
    assert (attention["heads"], attention["tokens"], attention["width"]) == (2, 17, 16)
    assert len(described["map"]["linears"]) == 14  # with the patch embedding


def test_inspect_prints_every_linear_and_unmatched_node(work: Path, capsys: Capture) -> None:
    ran = run_cli(capsys, "inspect", "model.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert "2 blocks, 2 attentions, 13 linears, 1 patch embeddings, 5 norms, 0 unmatched" in ran.out
    assert "…" not in ran.out  # nothing is cut off
    for role in ("patch_embed", "block0.attn.q", "block1.mlp.fc2", "head"):
        assert role in ran.out
    text = ATTENTION.replace("MatMul(context, Wo)", 'Einsum<equation = "nij,nij,nij->nij">(context, context, context)')
    ran = run_cli(capsys, "inspect", save_attention(Path("einsum.onnx"), text))
    assert REASON[:20] in ran.out  # the table wraps it


def test_names_in_brackets_are_no_markup(work: Path, capsys: Capture) -> None:
    proto = onnx.load(save_attention(Path("x.onnx")))
    for node in proto.graph.node:
        node.name = f"[bold]{node.name}[/]:x:"
    folder = Path("[red]models")
    folder.mkdir()
    onnx.save(proto, folder / "x.onnx")
    ran = run_cli(capsys, "inspect", folder / "x.onnx")
    assert ran.code == 0
    assert "[red]models/x.onnx: 1 blocks" in ran.out
    assert "[bold]probs[/]:x:" in ran.out


@pytest.fixture
def labelled(work: Path, images: Path) -> Path:
    """Two folders of three images, and one file that is no image."""
    for index, image in enumerate(sorted(images.iterdir())[:6]):
        folder = work / "labelled" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    (work / "labelled/1/broken.png").write_bytes(b"not pixels")
    return work / "labelled"


def test_evaluate(work: Path, labelled: Path, capsys: Capture) -> None:
    quick_report(capsys)
    ran = run_cli(capsys, "evaluate", "model.onnx", "out.onnx", "--data", "labelled", "--json")
    assert (ran.code, ran.err) == (0, "onnxvitq: skipped 1/broken.png: not an image\n")
    result = json.loads(ran.out)
    figures = {"samples", "top1_reference", "top1_quantized", "agreement", "sqnr_db"}
    assert set(result) == figures | {"task", "metric", "skipped"}
    assert (result["samples"], result["skipped"]) == (6, [{"file": "1/broken.png", "reason": "not an image"}])
    assert 0 <= result["agreement"] <= 1
    assert result["sqnr_db"] > 20
    printed = run_cli(capsys, "evaluate", "model.onnx", "out.onnx", "--data", "labelled")
    assert printed.out == (
        f"6 samples: top-1 {result['top1_reference']:.2f} % float, {result['top1_quantized']:.2f} % quantized; "
        f"agreement {100 * result['agreement']:.2f} %; SQNR {result['sqnr_db']:.2f} dB\n"
    )


def test_evaluate_gives_the_same_for_any_batch_and_for_arrays(work: Path, labelled: Path, capsys: Capture) -> None:
    quick_report(capsys)
    (labelled / "1/broken.png").unlink()
    command = ("evaluate", "model.onnx", "out.onnx", "--data")
    whole = report_of(capsys, *command, "labelled")
    for batch in (1, 4):
        parts = report_of(capsys, *command, "labelled", "--batch-size", batch, "--threads", 1)
        # A sum of float32 in another order may move a value across a rounding border of its code.
        assert parts.pop("sqnr_db") == pytest.approx(whole["sqnr_db"], abs=0.5)
        assert parts == {name: value for name, value in whole.items() if name != "sqnr_db"}
    files = [path for name in "01" for path in sorted((labelled / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    np.savez("labelled.npz", x=pixels, y=np.array([0, 0, 0, 1, 1, 1]))
    assert report_of(capsys, *command, "labelled.npz") == whole


def test_bench_of_two_thread_counts_with_a_profile(work: Path, capsys: Capture) -> None:
    quick_report(capsys)
    options = ("--runs", 1, "--threads", "1,2", "--profile")
    result = report_of(capsys, "bench", "model.onnx", "out.onnx", *options)
    assert [(row["threads"], row["model"]) for row in result["models"]] == [
        (threads, model) for threads in (1, 2) for model in ("model.onnx", "out.onnx")
    ]
    assert [row["model"] for row in result["footprints"]] == ["model.onnx", "out.onnx"]
    assert all(row["load_ms"] > 0 and row["largest_mb"] >= row["peak_mb"] > 0 for row in result["footprints"])
    assert "QGemm" not in result["operators"][0]
    assert result["operators"][1]["QGemm"]["nodes"] > 0
    table = run_cli(capsys, "bench", "model.onnx", "out.onnx", *options).out
    assert all(text in table for text in ("1 thread(s)", "2 thread(s)", "peak MB", "QGemm"))


def test_bench(work: Path, capsys: Capture) -> None:
    quick_report(capsys)
    result = report_of(capsys, "bench", "model.onnx", "out.onnx", "--runs", 3, "--threads", 1, "--batch-size", 2)
    assert (result["threads"], result["runs"], result["batch"]) == ([1], 3, 2)
    assert [timing["model"] for timing in result["models"]] == ["model.onnx", "out.onnx"]
    assert result["models"][0]["speedup"] == 1
    for timing in result["models"]:
        assert 0 < timing["lower_ms"] <= timing["median_ms"] <= timing["upper_ms"]
        assert timing["load_ms"] > 0
    ran = run_cli(capsys, "bench", "model.onnx", "--runs", 1)
    assert (ran.code, ran.err) == (0, "")
    assert "times the first" in ran.out
    assert "model.onnx" in ran.out


FACTORY = """
import torch

class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, image):
        q, k, v = self.qkv(image.flatten(2)).chunk(3, dim=-1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).mean(1)

def make():
    return Attention()

def example_inputs():
    return (torch.randn(2, 3, 2, 4),)
"""


def test_export(work: Path, capsys: Capture) -> None:
    Path("factory.py").write_text(FACTORY)
    command = ("export", "factory.py:make", "-o", "exported.onnx", "--exporter", "torchscript")
    result = report_of(capsys, *command)
    assert (result["path"], result["exporter"]) == ("exported.onnx", "torchscript")
    assert result["max_difference"] <= result["tolerance"]
    assert result["inputs"][0]["shape"] == [None, 3, 2, 4]
    onnx.checker.check_model("exported.onnx")
    ran = run_cli(capsys, *command, "--static-batch", 3)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("exported.onnx: torchscript, opset ")
    assert "[3, 3, 2, 4]" in ran.out


# ---------------------------------------------------------------------------------------------------------- the process


@pytest.mark.parametrize("command", [(), ("inspect",), ("export",), ("evaluate",), ("bench",)])
def test_help(capsys: Capture, command: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert "usage: onnxvitq" in captured.out
    assert captured.err == ""


def test_as_a_module_with_names_that_cannot_be_printed(work: Path) -> None:
    shutil.copy("model.onnx", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.onnx")
    latin1 = os.fsdecode(b"caf\xe9.png")  # as old archives hold
    Path("images", latin1).write_bytes(b"not pixels")
    root = str(Path(onnxvitq.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "ascii"}

    def run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "onnxvitq", *arguments]
        return subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)

    ran = run("caf\N{LATIN SMALL LETTER E WITH ACUTE}.onnx", "--calib", "images", "-o", "out.onnx", *QUICK)
    assert (ran.returncode, ran.stderr) == (0, b"onnxvitq: skipped caf\\udce9.png: not an image\n")
    assert b"out.onnx" in ran.stdout
    ran = run("inspect", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.onnx")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"caf\\xe9.onnx: 2 blocks" in ran.stdout
