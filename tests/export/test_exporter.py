"""Export end to end: both exporters, dynamic and static, equal to torch; and nothing left behind when it goes wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnxvitq.core.errors import ConfigError, ExportError, OutputError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.export import exporter
from onnxvitq.export.exporter import ExportOptions, ExportResult, Runner, export_model
from onnxvitq.export.specs import load_source
from onnxvitq.export.torch_exporters import EXPORTERS, TORCH_VERSION, Request, export_torchscript, seeded

# Built in training mode, with a dropout that would show; an attention, so that operator sets before 14 are refused.
MODULE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.drop(self.norm(self.patch(image).flatten(2).transpose(1, 2))).unsqueeze(1)
        return self.head(nn.functional.scaled_dot_product_attention(x, x, x).mean((1, 2)))

class Branching(Tiny):
    def forward(self, image):
        return super().forward(image) if image.sum() > 0 else super().forward(-image)

class FixedBatch(Tiny):
    def forward(self, image):
        return super().forward(image).reshape(int(image.shape[0]), 5)

class Named(Tiny):
    def forward(self, image):
        return {"logits": super().forward(image)}

class NotFinite(Tiny):
    def forward(self, image):
        return super().forward(image) / 0.0

class Two(Tiny):
    def forward(self, image, scale):
        logits = super().forward(image)
        return logits.unsqueeze(1), logits * scale

def example_inputs():
    return (torch.randn(2, 3, 8, 8),)
"""
TWO_INPUTS = MODULE.replace("return (torch.randn(2, 3, 8, 8),)", "return (torch.randn(2, 3, 8, 8), torch.rand(2, 1))")
FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "architectures": ["ViTForImageClassification"],
}
Exported = tuple[ExportOptions, ExportResult]
Feeds = Mapping[str, np.ndarray]
QUICK = ExportOptions(exporter="torchscript", seed=4)


def run(file: Path, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # an expected failure shows in its exception
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def input_shapes(model: onnx.ModelProto) -> list[list[str | int]]:
    return [[dim.dim_param or dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in model.graph.input]


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("definition") / "tiny.py"
    file.write_text(MODULE)
    return file


@pytest.fixture(
    scope="session", params=FORMS, ids=[f"{name}-{'dynamic' if open_ else 'static'}" for name, open_ in FORMS]
)
def exported(request: pytest.FixtureRequest, tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """(options, result) of one export of the tiny module."""
    name, dynamic = request.param
    options = ExportOptions(exporter=name, dynamic_batch=dynamic, batch=3, seed=4)
    output = tmp_path_factory.mktemp("exported") / "model.onnx"
    return options, export_model(f"{tiny_file}:Tiny", output, options, run=run)


def test_the_graph_equals_torch_at_every_batch_it_takes(exported: Exported, tiny_file: Path) -> None:
    options, result = exported
    with seeded(4):
        source = load_source(f"{tiny_file}:Tiny", None, 4)
    for batch in (1, 2, 5) if options.dynamic_batch else (3,):
        images = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = source.module(images).numpy()
        (logits,) = run(result.path, {"input": images.numpy()})
        # Outputs are of order 1, and one float32 sum of some 50 products is off by 1e-6 at most.
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_the_result_says_what_was_written(exported: Exported) -> None:
    options, result = exported
    model = onnx.load(result.path)
    batch = None if options.dynamic_batch else 3
    assert result.inputs == (InputSpec(name="input", dtype="float32", shape=(batch, 3, 8, 8)),)
    assert (result.exporter, result.tolerance, result.preprocessing) == (options.exporter, 1e-3, None)
    assert 0 <= result.max_difference < 1e-5  # fp32 reassociation in a net this small
    assert [entry.version for entry in model.opset_import if not entry.domain] == [result.opset]
    assert input_shapes(model) == [["batch" if options.dynamic_batch else 3, 3, 8, 8]]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert metadata(model) == {"onnxvitq.exporter": f"{options.exporter} torch {TORCH_VERSION}"}


def test_only_the_model_is_left_in_its_folder(exported: Exported) -> None:
    _, result = exported
    assert [path.name for path in result.path.parent.iterdir()] == ["model.onnx"]


def test_nothing_of_this_machine_is_in_the_file(exported: Exported, tiny_file: Path) -> None:
    _, result = exported
    content = result.path.read_bytes()
    for trace in (str(tiny_file.parent), "tiny.py", "site-packages", "stack_trace", "namespace", "forward"):
        assert trace.encode() not in content


def test_the_same_module_elsewhere_gives_the_same_bytes(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, result = exported
    (tmp_path / "other_name.py").write_text("# moved\n\n" + MODULE)
    monkeypatch.chdir(tmp_path)
    again = export_model("other_name.py:Tiny", tmp_path / "again.onnx", options, run=run)
    assert again.path.read_bytes() == result.path.read_bytes()


def test_export_is_silent_and_leaves_the_random_state_alone(
    tiny_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    export_model(f"{tiny_file}:Tiny", tmp_path / "m.onnx", QUICK, run=run)
    assert torch.equal(torch.rand(1), expected)
    assert capfd.readouterr() == ("", "")


def test_several_inputs_and_outputs_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_INPUTS)
    result = export_model(f"{tmp_path / 'two.py'}:Two", tmp_path / "m.onnx", QUICK, run=run)
    model = onnx.load(result.path)
    assert [(spec.name, spec.shape) for spec in result.inputs] == [("input", (None, 3, 8, 8)), ("input_1", (None, 1))]
    assert [value.name for value in model.graph.output] == ["features", "output_1"]


def test_an_asked_for_opset_is_written(tiny_file: Path, tmp_path: Path) -> None:
    options = ExportOptions(exporter="torchscript", opset=17)
    result = export_model(f"{tiny_file}:Tiny", tmp_path / "m.onnx", options, run=run)
    assert result.opset == 17


# --- Hugging Face


@pytest.mark.parametrize("name", ["dynamo", "torchscript"])
def test_a_hugging_face_configuration(tmp_path: Path, name: Literal["dynamo", "torchscript"]) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(VIT))
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}\n')
    options = ExportOptions(exporter=name)
    result = export_model(str(folder), tmp_path / "vit.onnx", options, run=run)
    model = onnx.load(result.path)
    assert input_shapes(model) == [["batch", 3, 32, 32]]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert (result.inputs[0].name, result.weights) == ("pixel_values", "random, seed 0")
    assert result.preprocessing == {"image_mean": [0.5, 0.5, 0.5]}
    assert metadata(model)["preprocessor_config.json"] == '{"image_mean": [0.5, 0.5, 0.5]}\n'
    assert result.max_difference < 1e-5


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "expected an object .*got list")])
def test_a_bad_preprocessor_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        export_model(str(tmp_path), tmp_path / "m.onnx", QUICK, run=run)


# --- what goes wrong


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """An output that exists already; afterwards it must be all there is, unchanged."""
    output = tmp_path / "model.onnx"
    output.write_bytes(b"the old model")
    yield output
    assert output.read_bytes() == b"the old model"
    assert list(tmp_path.iterdir()) == [output]


def one_percent_off(file: Path, feeds: Feeds) -> list[np.ndarray]:
    return [array * 1.01 for array in run(file, feeds)]


def not_a_number(file: Path, feeds: Feeds) -> list[np.ndarray]:
    return [array * np.nan for array in run(file, feeds)]


def wrong_only_beyond_the_first_batch(file: Path, feeds: Feeds) -> list[np.ndarray]:
    return [array * (1.01 if len(array) == 1 else 1.0) for array in run(file, feeds)]


def transposed(file: Path, feeds: Feeds) -> list[np.ndarray]:
    return [array.T for array in run(file, feeds)]


def one_output_too_many(file: Path, feeds: Feeds) -> list[np.ndarray]:
    return run(file, feeds) * 2


def refusing(file: Path, feeds: Feeds) -> list[np.ndarray]:
    raise RuntimeError("no kernel\nmore")


@pytest.mark.parametrize(
    ("wrong_run", "message"),
    [
        (one_percent_off, "differs from torch by 0.01, expected 0.001 or less"),
        (not_a_number, "differs from torch by nan"),
        (wrong_only_beyond_the_first_batch, "differs from torch by 0.01"),
        (transposed, r"returns shapes \[\(5, 2\)\], torch \[\(2, 5\)\]"),
        (one_output_too_many, "returns shapes"),
        (refusing, r"onnxruntime cannot run the exported graph: RuntimeError: no kernel \("),
    ],
)
def test_a_graph_unlike_torch_is_not_written(tiny_file: Path, kept: Path, wrong_run: Runner, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(f"{tiny_file}:Tiny", kept, QUICK, run=wrong_run)


def test_the_tolerance_is_the_callers(tiny_file: Path, tmp_path: Path) -> None:
    options = ExportOptions(exporter="torchscript", tolerance=0.1)
    result = export_model(f"{tiny_file}:Tiny", tmp_path / "m.onnx", options, run=one_percent_off)
    assert result.max_difference == pytest.approx(0.01, abs=1e-5)  # the float32 noise of the graph itself


def test_ctrl_c_leaves_the_old_file(tiny_file: Path, kept: Path) -> None:
    def interrupted(file: Path, feeds: Feeds) -> list[np.ndarray]:
        assert file.is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(f"{tiny_file}:Tiny", kept, QUICK, run=interrupted)


@pytest.mark.parametrize(
    ("factory", "changes", "message"),
    [
        ("Branching", {"exporter": "dynamo"}, r"the dynamo exporter failed: .+ \(try --exporter torchscript\)"),
        ("FixedBatch", {}, r"onnxruntime cannot run the exported graph"),
        ("Tiny", {"opset": 9}, r"the torchscript exporter failed: .*try --exporter dynamo"),
        ("Tiny", {"exporter": "dynamo", "opset": 99}, r"cannot write opset 99, got \d+ \(leave out --opset"),
        ("Tiny", {"image_size": 2}, r"does not run on inputs of shape \[\(2, 3, 2, 2\)\]: RuntimeError"),
        ("Named", {}, "expected the module to return a tensor or a tuple of tensors, got dict"),
        ("NotFinite", {}, "torch itself returns NaN or infinite values"),
    ],
)
def test_a_failed_export_is_one_line_and_leaves_the_old_file(
    tiny_file: Path, kept: Path, capfd: pytest.CaptureFixture[str], factory: str, changes: dict[str, Any], message: str
) -> None:
    options = ExportOptions(**({"exporter": "torchscript"} | changes))
    with pytest.raises(ExportError, match=message) as caught:
        export_model(f"{tiny_file}:{factory}", kept, options, run=run)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_the_checker_refuses_is_not_written(
    tiny_file: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(request: Request, scratch: Path) -> onnx.ModelProto:
        model = export_torchscript(request, scratch)
        model.graph.node[-1].op_type = "NoSuchOperator"
        return model

    monkeypatch.setitem(EXPORTERS, "torchscript", breaking)
    with pytest.raises(ExportError, match=r"fails onnx\.checker: .*NoSuchOperator"):
        export_model(f"{tiny_file}:Tiny", kept, QUICK, run=run)


def test_an_output_that_cannot_be_written(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does the folder exist"):
        export_model(f"{tiny_file}:Tiny", tmp_path / "absent" / "m.onnx", QUICK, run=run)
    with pytest.raises(OutputError, match="expected a file to write, got a folder"):
        export_model(f"{tiny_file}:Tiny", tmp_path, QUICK, run=run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"exporter": "keras"}, {"batch": 0}, {"opset": 0}, {"image_size": 0}, {"tolerance": 0.0}]
)
def test_options_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}: expected"):
        ExportOptions(**changes)


# --- large models, and life without torch


def test_weights_beyond_the_limit_go_beside_the_graph(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = export_model(f"{tiny_file}:Tiny", tmp_path / "small.onnx", QUICK, run=run)
    monkeypatch.setattr(exporter, "PROTOBUF_LIMIT", 0)
    large = export_model(f"{tiny_file}:Tiny", tmp_path / "large.onnx", QUICK, run=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data", "small.onnx"]
    assert (
        onnx.load(large.path).SerializeToString() != onnx.load(large.path, load_external_data=False).SerializeToString()
    )
    feeds = {"input": np.ones((2, 3, 8, 8), np.float32)}
    np.testing.assert_array_equal(run(large.path, feeds)[0], run(small.path, feeds)[0])


WITHOUT_TORCH = """
import sys
from pathlib import Path
import onnxvitq.export.exporter as exporter
from onnxvitq.core.errors import ExportError
assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
sys.modules["torch"] = None
try:
    exporter.export_model("m:f", Path("m.onnx"), exporter.ExportOptions(), run=None)
except ExportError as error:
    assert "needs torch" in str(error) and "onnxvitq[torch]" in str(error), error
    sys.exit(7)
"""


def test_torch_is_loaded_late_and_asked_for_when_missing(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert finished.returncode == 7, finished.stderr.decode()
    assert list(tmp_path.iterdir()) == []
