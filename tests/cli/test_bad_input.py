"""Wrong use and bad input: exit 2, one line that says what is wrong and where, and nothing on the disk has changed."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commandline import ATTENTION, contents, run_cli, save_attention
from onnx import TensorProto, helper
from textgraph import model_of

from onnxvitq import api
from onnxvitq.api import Result
from onnxvitq.core.errors import RewriteError
from onnxvitq.graph import scratch

Refused = Callable[..., str]
OLD = b"what an earlier run wrote"


@pytest.fixture
def work(vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: model.onnx, four images, an older output old.onnx, and in it the folder for temporary files."""
    shutil.copy(vit_file, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for image in sorted(images.iterdir())[:4]:
        shutil.copy(image, tmp_path / "images")
    (tmp_path / "old.onnx").write_bytes(OLD)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(work: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, in the folder ``work``; the one line it printed."""

    def run(*arguments: object) -> str:
        before = contents(work)
        ran = run_cli(capsys, *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert re.fullmatch(r"onnxvitq: error: [^\n]+: [^\n]+\n", ran.err), ran.err
        assert "Traceback" not in ran.err
        assert contents(work) == before
        return ran.err

    return run


def model_bytes() -> bytes:
    return Path("model.onnx").read_bytes()


def changed(change: Callable[[onnx.ModelProto], None]) -> str:
    """model.onnx changed, as another file; its name."""
    proto = onnx.load("model.onnx")
    change(proto)
    Path("changed.onnx").write_bytes(proto.SerializeToString())
    return "changed.onnx"


# -------------------------------------------------------------------------------------------------------- the model


def test_the_commands_of_this_module_work_when_nothing_is_wrong(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(work)
    ran = run_cli(capsys, "model.onnx", "--calib", "images", "-o", "old.onnx", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    after = contents(work)
    assert after.pop("old.onnx") != before.pop("old.onnx")
    assert after == before  # the model, the images, no temporary file


@pytest.mark.parametrize("output", ["old.onnx", "new.onnx"])
def test_missing_model(refused: Refused, output: str) -> None:
    assert "missing.onnx: no such file" in refused("missing.onnx", "--calib", "images", "-o", output)


def test_folder_as_model(refused: Refused) -> None:
    assert "images: expected an ONNX file, got a folder" in refused("images", "--calib", "images", "-o", "old.onnx")


def test_truncated_model(refused: Refused) -> None:
    whole = model_bytes()
    for share in (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 1 - 1 / len(whole)):
        Path("cut.onnx").write_bytes(whole[: int(share * len(whole))])
        assert "cut.onnx: not an ONNX model" in refused("cut.onnx", "--calib", "images", "-o", "old.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"hello world, this is text",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b'{"a": 1}',
        b"\xff" * 99,
    ],
    ids=["empty", "zeros", "text", "png", "json", "ones"],
)
def test_not_onnx(refused: Refused, content: bytes) -> None:
    Path("other.onnx").write_bytes(content)
    assert "other.onnx: not an ONNX model" in refused("other.onnx", "--calib", "images", "-o", "old.onnx")


def test_not_onnx_whatever_its_suffix(refused: Refused) -> None:
    Path("model.json").write_text('{"a": 1}')
    assert "model.json: not an ONNX model" in refused("model.json", "--calib", "images", "-o", "old.onnx")


def test_missing_external_data(refused: Refused) -> None:
    proto = onnx.load("model.onnx")
    onnx.save(proto, "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    Path("split.data").unlink()
    line = refused("split.onnx", "--calib", "images", "-o", "old.onnx")
    assert "split.onnx: cannot be read" in line
    assert "external data must lie beside the model" in line


def test_model_that_the_checker_refuses(refused: Refused) -> None:
    def misspell(proto: onnx.ModelProto) -> None:
        next(node for node in proto.graph.node if node.op_type == "Softmax").op_type = "Sofmax"

    assert "the ONNX checker refuses it" in refused(changed(misspell), "--calib", "images", "-o", "old.onnx")


@pytest.mark.parametrize("opset", [9, 99])
def test_unsupported_opset(refused: Refused, opset: int) -> None:
    def set_opset(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = opset

    line = refused(changed(set_opset), "--calib", "images", "-o", "old.onnx")
    assert re.search(rf"expected opset \d+ to \d+, got {opset}", line)


def test_already_quantized(refused: Refused, quantized: Result) -> None:
    line = refused(quantized.output, "--calib", "images", "-o", "old.onnx")
    assert "already quantized" in line
    assert "give the float model" in line


def test_already_fused(refused: Refused) -> None:
    def fuse(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "Softmax")
        node.op_type, node.domain, node.name = "Attention", "com.microsoft", "fused"
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    line = refused(changed(fuse), "--calib", "images", "-o", "old.onnx")
    assert "already fused by onnxruntime: node 'fused' is a com.microsoft Attention" in line


def test_no_attention_names_the_three_nearest_misses(refused: Refused) -> None:
    text = (
        "(float[N,5,8] x) => (float[N,5,8] y) { t = Transpose<perm = [0, 2, 1]>(x)"
        " a1 = MatMul(x, t) a2 = Relu(a1) a3 = MatMul(a2, x) b1 = MatMul(a3, t) b2 = MatMul(b1, a3) y = Relu(b2) }"
    )
    np.savez("data.npz", x=np.zeros((2, 5, 8), np.float32))
    line = refused(save_attention(Path("mlp.onnx"), text), "--calib", "data.npz", "-o", "old.onnx")
    assert "no attention block found; nearest: " in line
    nearest = re.search(r"nearest: (.*) \(is it a Vision Transformer", line)
    assert nearest is not None
    entries = [entry.split(": ", 1) for entry in nearest[1].split("; ")]
    assert len({name for name, _ in entries}) == len(entries) == 3
    assert {name for name, _ in entries} < {"a1", "a3", "b1", "b2"}
    assert all(reason for _, reason in entries)


def test_no_attention_and_nothing_like_it(refused: Refused) -> None:
    text = "(float[N,8] x) => (float[N,8] y) <float[8,8] W> { h = MatMul(x, W) y = Relu(h) }"
    np.savez("data.npz", x=np.zeros((2, 8), np.float32))
    line = refused(save_attention(Path("mlp.onnx"), text), "--calib", "data.npz", "-o", "old.onnx")
    assert "it has no product of two activations" in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite(refused: Refused, value: float) -> None:
    weight = np.ones((8, 8), np.float32)
    weight[3, 4] = value
    model = save_attention(Path("nan.onnx"), Wv=weight)
    line = refused(model, "--calib", "images", "-o", "old.onnx")
    assert "weight 'Wv' holds a NaN or an infinity" in line


def test_operator_that_onnxruntime_does_not_have(refused: Refused) -> None:
    def foreign(proto: onnx.ModelProto) -> None:
        output = proto.graph.output[0].name
        for node in proto.graph.node:
            node.output[:] = ["before" if name == output else name for name in node.output]
        proto.graph.node.append(helper.make_node("Sparkle", ["before"], [output], name="sparkle", domain="com.acme"))
        proto.opset_import.append(helper.make_opsetid("com.acme", 1))

    line = refused(changed(foreign), "--calib", "images", "-o", "old.onnx")
    assert "changed.onnx: onnxruntime cannot load it" in line  # and not a temporary file's name


# ---------------------------------------------------------------------------------------------------- calibration data


def test_missing_calib(refused: Refused) -> None:
    assert "--calib: expected calibration data" in refused("model.onnx", "-o", "old.onnx")


def test_calibration_data_that_is_not_there(refused: Refused) -> None:
    assert "nowhere: expected a folder or a file" in refused("model.onnx", "--calib", "nowhere", "-o", "old.onnx")


def test_empty_folder(refused: Refused) -> None:
    Path("empty").mkdir()
    assert "empty: expected image files" in refused("model.onnx", "--calib", "empty", "-o", "old.onnx")


def test_folder_without_images(refused: Refused) -> None:
    Path("texts").mkdir()
    Path("texts/notes.txt").write_text("no pixels here")
    assert "texts: expected image files" in refused("model.onnx", "--calib", "texts", "-o", "old.onnx")


def test_no_image_that_can_be_read(refused: Refused) -> None:
    Path("broken").mkdir()
    for name in ("a.png", "b.jpg"):
        Path("broken", name).write_bytes(b"not pixels")
    line = refused("model.onnx", "--calib", "broken", "-o", "old.onnx")
    assert "none of 2 image(s) can be used" in line
    assert "a.png: not an image" in line


def test_other_kind_of_file(refused: Refused) -> None:
    Path("data.csv").write_text("1,2,3")
    assert "data.csv: expected a folder, an image, .npz or .npy" in refused(
        "model.onnx", "--calib", "data.csv", "-o", "old.onnx"
    )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": np.zeros((4, 3, 16, 17), np.float32)}, "wrong dimensions: input image takes float32 (N, 3, 16, 16)"),
        ({"image": np.zeros((4, 768), np.float32)}, "rank 2: input image takes float32 (N, 3, 16, 16)"),
        ({"image": np.zeros((0, 3, 16, 16), np.float32)}, "no samples"),
        ({"image": np.full((4, 3, 16, 16), np.nan, np.float32)}, "sample 0 holds NaN"),
        ({"image": np.zeros((4, 3, 16, 16), "U1")}, "not an array of numbers"),
        ({"image": np.zeros((4, 3, 16, 16), np.int32)}, "wrong type of number"),
        ({"a": np.zeros((4, 3, 16, 16)), "b": np.zeros(4)}, "expected an array named image, or x, got a, b"),
        ({}, "expected an array named image, or x, got none"),
    ],
)
def test_arrays_that_do_not_fit(refused: Refused, arrays: dict[str, Any], words: str) -> None:
    np.savez("data.npz", **arrays)
    assert words in refused("model.onnx", "--calib", "data.npz", "-o", "old.onnx")


def test_damaged_npz(refused: Refused) -> None:
    np.savez("data.npz", image=np.zeros((4, 3, 16, 16), np.float32))
    Path("data.npz").write_bytes(Path("data.npz").read_bytes()[:500])
    assert "data.npz: cannot be loaded as .npz" in refused("model.onnx", "--calib", "data.npz", "-o", "old.onnx")


def test_images_for_a_model_that_takes_none(refused: Refused) -> None:
    line = refused(save_attention(Path("tokens.onnx")), "--calib", "images", "-o", "old.onnx")
    assert "images need a model with one float input of rank 4, this one takes x float32 [None, 5, 8]" in line


def test_images_of_another_size_than_the_model_takes(refused: Refused) -> None:
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx", "--resize", 8, 8)
    assert "the model takes 16 x 16 (height x width), the preprocessing from flags gives 8 x 8" in line


def test_images_for_a_model_that_says_no_size(refused: Refused) -> None:
    # One attention over the pixels of one channel, height and width dynamic.
    text = (
        "(float[N,1,H,W] x) => (float[N,1,H,H] y) { t = Transpose<perm = [0, 1, 3, 2]>(x)"
        " scores = MatMul(x, t) probs = Softmax<axis = -1>(scores) h = MatMul(probs, x) y = MatMul(h, t) }"
    )
    line = refused(save_attention(Path("dynamic.onnx"), text), "--calib", "images", "-o", "old.onnx")
    assert "height and width are dynamic [None, 1, None, None], no size given" in line
    assert "--resize" in line


def test_nan_activations_name_the_tensor_and_the_sample(refused: Refused) -> None:
    text = ATTENTION.replace("q = MatMul(x, Wq)", "root = Sqrt(x) q = MatMul(root, Wq)")
    model = save_attention(Path("root.onnx"), text)
    values = np.abs(np.random.default_rng(0).normal(size=(4, 5, 8))).astype(np.float32)
    values[2, 1, 3] = -1
    np.savez("data.npz", x=values)
    line = refused(model, "--calib", "data.npz", "-o", "old.onnx")
    assert "error: root: NaN or infinity in the float model, at calibration sample 2" in line


def test_nan_in_the_output_alone(refused: Refused) -> None:
    text = ATTENTION.replace("y = MatMul(context, Wo)", "z = MatMul(context, Wo) y = Log(z)")
    model = save_attention(Path("log.onnx"), text)
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32))
    line = refused(model, "--calib", "data.npz", "-o", "old.onnx")
    assert re.search(r"error: y: NaN or infinity in the float model, at calibration sample \d", line)


# ------------------------------------------------------------------------------------------------------------- outputs


def test_output_in_a_folder_that_does_not_exist(refused: Refused) -> None:
    line = refused("model.onnx", "--calib", "images", "-o", "nowhere/out.onnx")
    assert "nowhere/out.onnx: the folder 'nowhere' does not exist" in line


def test_output_below_a_file(refused: Refused) -> None:
    assert "does not exist" in refused("model.onnx", "--calib", "images", "-o", "old.onnx/out.onnx")


def test_output_that_is_a_folder(refused: Refused) -> None:
    assert "scratch: expected a file name, got a folder" in refused("model.onnx", "--calib", "images", "-o", "scratch")


@pytest.mark.parametrize("option", ["-o", "--report", "--save-config-file"])
def test_output_that_is_a_device(refused: Refused, option: str) -> None:
    os.mkfifo("pipe")  # stands for /dev/null, which the superuser would lose
    line = refused("model.onnx", "--calib", "images", option, "pipe")
    assert "pipe: expected a file name, got a device or a pipe" in line


def test_output_in_a_folder_without_permission(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", forbid)  # root, who often runs tests, may write anywhere
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx")
    assert "the folder cannot be written to: Permission denied" in line


@pytest.mark.parametrize("same", ["model.onnx", "./model.onnx", "images/../model.onnx", "link.onnx", "hard.onnx"])
def test_output_that_is_the_input(refused: Refused, same: str) -> None:
    Path("link.onnx").symlink_to("model.onnx")
    os.link("model.onnx", "hard.onnx")
    assert f"{Path(same)}: the output is the input" in refused("model.onnx", "--calib", "images", "-o", same)


def test_input_that_is_a_link_to_the_output(refused: Refused) -> None:
    Path("link.onnx").symlink_to("model.onnx")
    assert "the output is the input" in refused("link.onnx", "--calib", "images", "-o", "model.onnx")


@pytest.mark.parametrize("same", ["new.onnx", "./new.onnx", "images/../new.onnx"])
def test_report_in_the_place_of_the_model(refused: Refused, same: str) -> None:
    line = refused("model.onnx", "--calib", "images", "-o", "new.onnx", "--report", same)
    assert "--report: expected a file of its own" in line
    assert "-o names too" in line


def test_report_in_the_place_of_the_model_that_has_no_name_yet(refused: Refused) -> None:
    line = refused("model.onnx", "--calib", "images", "--report", "model_int8.onnx")
    assert "--report: expected a file of its own" in line


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--report", "model.onnx"), "model.onnx: the output is the input"),
        (("--report", "scratch"), "expected a file name, got a folder"),
        (("--report", "nowhere/report.json"), "does not exist"),
        (("--save-config-file", "model.onnx"), "model.onnx: the output is the input"),
        (("--save-config-file", "old.onnx"), "--save-config-file: expected a file of its own"),
        (("--save-config-file", "nowhere/config.json"), "does not exist"),
        (("--report", "a.json", "--save-config-file", "a.json"), "--save-config-file: expected a file of its own"),
        (("--report", "config.json", "--config", "config.json"), "--report: expected a file of its own"),
    ],
)
def test_other_results_that_cannot_be_written(refused: Refused, option: tuple[str, ...], words: str) -> None:
    Path("config.json").write_text("{}")
    assert words in refused("model.onnx", "--calib", "images", "-o", "old.onnx", *option)


def test_output_in_the_place_of_the_calibration_data(refused: Refused) -> None:
    np.savez("data.npz", image=np.zeros((2, 3, 16, 16), np.float32))
    line = refused("model.onnx", "--calib", "data.npz", "-o", "data.npz")
    assert "-o: expected a file of its own, got data.npz, which --calib names too" in line


def test_full_disk(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(proto: onnx.ModelProto, path: Path, data: Path | None) -> int:
        path.write_bytes(b"half a model")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "save_model", half)
    assert "old.onnx: cannot be written: No space left on device" in refused(
        "model.onnx", "--calib", "images", "-o", "old.onnx"
    )


def test_full_disk_while_weights_are_written(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(proto: onnx.ModelProto, path: Path, **options: Any) -> None:
        if "location" in options and path.parent == Path():
            path.with_name(str(options["location"])).write_bytes(b"half the weights")
            raise OSError(28, "No space left on device")
        save(proto, path, **options)

    save = onnx.save
    monkeypatch.setattr(onnx, "save", half)
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx", "--external-data")
    assert ".data: cannot be written: No space left on device" in line


def test_full_temporary_folder(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(proto: onnx.ModelProto, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "save_for_session", half)
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx")
    assert "temporary files cannot be written: No space left on device (set TMPDIR" in line


@pytest.mark.parametrize("stage", ["onnxvitq.targets.ort_cpu.target.audit", "onnxvitq.api.compare"])
def test_a_check_that_fails_after_writing_undoes_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RewriteError("model.onnx", "a check failed")

    monkeypatch.setattr(stage, fail)
    assert "model.onnx: a check failed" in refused("model.onnx", "--calib", "images", "-o", "old.onnx")


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nodes-to-exclude", "block7.*"), "'block7.*' matches no linear or attention product"),
        (("--nodes-to-exclude", "haed"), "did you mean head"),
        (("--nodes-to-exclude", "head", "nothing"), "'nothing' matches no"),
        (("--objective", "magic"), "--objective/--calibration-method: invalid choice: 'magic'"),
        (("--attention", "fp8"), "--attention: invalid choice: 'fp8'"),
        (("--bits", "w1a8"), "bits: expected wNaM with N and M 2 to 8"),
        (("--bits-for", "fc2=w4a8"), "'fc2' matches no linear or attention product"),
        (("--bits-for", "head"), "expected PATTERN=wNaM or PATTERN=float"),
        (("--bits-for", "head=int4"), "bit_overrides: head: expected wNaM"),
        (("--weight-bits", "9"), "--weight-bits: expected 2 to 8, got 9"),
        (("--candidates", "1"), "candidates: expected 2 to 1000, got 1"),
        (("--candidates", "many"), "--candidates: invalid int value: 'many'"),
        (("--rounds", "0"), "rounds: expected 1 to 20, got 0"),
        (("--num-samples", "0"), "num_samples: expected 1 to"),
        (("--threads", "-1"), "threads: expected 0 to 1024, got -1"),
        (("--seed", "-1"), "seed: expected 0 to 4294967295, got -1"),
        (("--mean", "0.5", "0.5"), "--mean: expected one number, or one a channel (3), got 2"),
        (("--mean", "grey"), "--mean: expected a number, got 'grey'"),
        (("--std", "0"), "--std: expected positive numbers"),
        (("--resize", "0"), "--resize: expected sides of 1 to"),
        (("--resize", "big"), "--resize: expected a side such as 224"),
        (("--crop", "1", "2", "3"), "--crop: expected a side such as 224"),
        (("--scale", "-1"), "--scale: expected a positive number"),
        (("--color", "CMYK"), "--color: expected L or RGB, got 'CMYK'"),
        (("--color", "L"), "the model takes 3 channel(s), flags says mode L"),
        (("--interpolation", "magic"), "--interpolation: expected nearest, bilinear, bicubic or lanczos"),
        (("--log-level", "loud"), "--log-level: invalid choice: 'loud'"),
        (("--preprocessor-config", "nowhere.json"), "nowhere.json: cannot be read: No such file or directory"),
        (("--no-such-option",), "unrecognized arguments: --no-such-option"),
        (("--calib-data", "x"), "unrecognized arguments: --calib-data x"),
        (("another.onnx",), "unrecognized arguments: another.onnx"),
        (("-i", "another.onnx"), "expected one model, got model.onnx and another.onnx"),
        (("--candidates",), "--candidates: expected one argument"),
    ],
)
def test_wrong_options(refused: Refused, options: tuple[str, ...], words: str) -> None:
    assert words in refused("model.onnx", "--calib", "images", "-o", "old.onnx", *options)


def test_no_model(refused: Refused) -> None:
    assert "expected one model, got none" in refused("--calib", "images", "-o", "old.onnx")
    assert "expected one model, got none" in refused()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.json", '{"objektive": "mse"}', "objektive: unknown option; known: "),
        ("c.json", '{"objective": "magic"}', "objective: expected one of minmax, mse, pearson, ranking, got 'magic'"),
        ("c.json", '{"candidates": "15"}', "candidates: expected int, got '15'"),
        ("c.json", '{"candidates": true}', "candidates: expected int, got True"),
        ("c.json", '{"nodes_to_exclude": "head"}', "nodes_to_exclude: expected tuple, got 'head'"),
        ("c.json", '{"version": 99}', "version: expected 1, got 99"),
        ("c.json", '{"objective": ', "c.json: not valid .json"),
        ("c.json", "[1, 2]", "c.json: expected a table of options"),
        ("c.toml", "objective = magic", "c.toml: not valid .toml"),
        ("c.toml", 'objektive = "mse"', "objektive: unknown option"),
    ],
)
def test_wrong_configuration_file(refused: Refused, name: str, text: str, words: str) -> None:
    Path(name).write_text(text)
    assert words in refused("model.onnx", "--calib", "images", "-o", "old.onnx", "--config", name)


def test_missing_configuration_file(refused: Refused) -> None:
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx", "--config", "nowhere.json")
    assert "nowhere.json: cannot be read: No such file or directory" in line


def test_wrong_preprocessing_file_beside_the_model(refused: Refused) -> None:
    Path("preprocessor_config.json").write_text('{"do_resize": true, "size": "huge"}')
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx")
    assert "preprocessor_config.json" in line


# -------------------------------------------------------------------------------------------------------- sub-commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "missing.onnx"), "missing.onnx: no such file"),
        (("inspect", "old.onnx"), "old.onnx: not an ONNX model"),
        (("inspect",), "onnxvitq inspect: the following arguments are required: model"),
        (("inspect", "model.onnx", "--jsno"), "unrecognized arguments: --jsno"),
        (("evaluate", "model.onnx", "--data", "images"), "the following arguments are required: int8"),
        (("evaluate", "model.onnx", "model.onnx"), "the following arguments are required: --data"),
        (("evaluate", "missing.onnx", "model.onnx", "--data", "images"), "missing.onnx"),
        (("evaluate", "model.onnx", "old.onnx", "--data", "images"), "old.onnx: onnxruntime cannot load it"),
        (("evaluate", "model.onnx", "model.onnx", "--data", "images"), "expected a sub-folder for each class"),
        (("evaluate", "model.onnx", "model.onnx", "--data", "nowhere"), "nowhere: expected a folder or a file"),
        (
            ("evaluate", "model.onnx", "model.onnx", "--data", "labels.npz"),
            "labels: expected classes 0 to 4, got 0 to 5",
        ),
        (("evaluate", "model.onnx", "model.onnx", "--data", "bare.npz"), "expected an array named y"),
        (("evaluate", "model.onnx", "tokens.onnx", "--data", "right.npz"), "the model does not run on this input"),
        (("evaluate", "model.onnx", "model.onnx", "--data", "x", "--batch-size", "0"), "--batch-size: expected 1 to"),
        (("evaluate", "model.onnx", "model.onnx", "--data", "x", "--threads", "-1"), "--threads: expected 0 to 1024"),
        (("bench",), "the following arguments are required: models"),
        (("bench", "missing.onnx"), "missing.onnx"),
        (("bench", "model.onnx", "old.onnx"), "old.onnx: onnxruntime cannot load it"),
        (("bench", "model.onnx", "--runs", "0"), "--runs: expected 1 to"),
        (("bench", "model.onnx", "--runs", "few"), "--runs: expected a whole number, got 'few'"),
        (("bench", "model.onnx", "--threads", "-2"), "--threads: expected 0 to 1024, got -2"),
        (("bench", "model.onnx", "--seed", "-2"), "--seed: expected 0 to 4294967295, got -2"),
        (("bench", "model.onnx", "--batch-size", "-1"), "--batch-size: expected 1 to"),
        (("export", "nowhere.py:make", "-o", "old.onnx"), "nowhere.py"),
        (("export", "no_such_module:make", "-o", "old.onnx"), "no_such_module"),
        (("export", "factory.py:broken", "-o", "old.onnx"), "factory.py:broken"),
        (("export", "factory.py:make", "-o", "images"), "images: expected a file to write, got a folder"),
        (("export", "factory.py:make", "-o", "nowhere/a.onnx"), "cannot be written"),
        (("export", "factory.py:make", "-o", "old.onnx", "--static-batch", "0"), "batch: expected 1 or more, got 0"),
        (("export", "factory.py:make", "-o", "old.onnx", "--exporter", "magic"), "--exporter: invalid choice"),
        (("export", "factory.py:make", "-o", "old.onnx", "--seed", "-1"), "--seed: expected 0 to 4294967295, got -1"),
        (("export", "factory.py:make"), "the following arguments are required: -o/--output"),
    ],
)
def test_wrong_use_of_sub_commands(refused: Refused, arguments: tuple[str, ...], words: str) -> None:
    right = np.zeros((3, 3, 16, 16), np.float32)
    np.savez("labels.npz", x=right, y=np.array([0, 5, 1]))
    np.savez("right.npz", x=right, y=np.array([0, 4, 1]))
    np.savez("bare.npz", x=right)
    save_attention(Path("tokens.onnx"))
    Path("factory.py").write_text("def make():\n    raise AssertionError\n\n\ndef broken():\n    return 1 / 0\n")
    assert words in refused(*arguments)


# ------------------------------------------------------------------------------------------------ what is not an error


def test_hints_name_what_exists(refused: Refused) -> None:
    line = refused("model.onnx", "--calib", "images", "-o", "old.onnx", "--nodes-to-exclude", "block0.attn.Q")
    assert "block0.attn.q" in line


def test_a_model_of_another_name_and_suffix_is_fine(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("model.onnx", "a model")
    ran = run_cli(capsys, "a model", "--calib", "images", "-o", "a result", "--json", "--objective", "minmax")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["output"] == "a result"
    onnx.checker.check_model(onnx.load_from_string(Path("a result").read_bytes()))


def test_a_masked_attention_with_infinities_is_fine(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.where(np.tri(5, dtype=bool), 0, -np.inf).astype(np.float32)
    text = ATTENTION.replace("Wo>", "Wo, float[5,5] mask>").replace("Softmax<axis = -1>(scores)", "Softmax(masked)")
    text = text.replace("probs = ", "masked = Add(scores, mask) probs = ")
    onnx.save(model_of(text, weights={"mask": mask}), "masked.onnx")
    assert onnx.load("masked.onnx").graph.initializer[-1].data_type == TensorProto.FLOAT
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32))
    ran = run_cli(capsys, "masked.onnx", "--calib", "data.npz", "-o", "out.onnx", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["compare"]["sqnr_db"] > 20
