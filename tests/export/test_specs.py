"""SPEC -> module and inputs: every form, and one clear line for everything that is not one."""

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onnxvitq.core.errors import ExportError
from onnxvitq.export import factories
from onnxvitq.export.foreign import quiet
from onnxvitq.export.source import ExportSource, check_inputs, with_batch
from onnxvitq.export.specs import load_source
from onnxvitq.export.torch_exporters import seeded

with quiet():
    import transformers

MODELS = Path(__file__).parents[2] / "models"

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 4 * 4, 5))

def example_inputs():
    return (torch.randn(2, 3, 4, 4),)

def raising():
    raise OSError("weights are gone")

def wrong():
    return "no module"

number = 3
"""


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(MODULE)
    return file


def vit_config(**changes: Any) -> transformers.ViTConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    labels = {"image_size": 32, "patch_size": 8, "num_labels": 5, "architectures": ["ViTForImageClassification"]}
    return transformers.ViTConfig(**(sizes | labels | changes))


def shapes(source: ExportSource) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in source.inputs]


# --- module.path:factory and file.py:factory


def test_file_factory_gives_an_eval_module_and_its_example_inputs(module_file: Path) -> None:
    source = load_source(f"{module_file}:build", None, 0)
    assert not any(module.training for module in source.module.modules())
    assert shapes(source) == [(2, 3, 4, 4)]
    assert (source.input_name, source.preprocessor) == ("input", None)


def test_module_path_is_found_in_the_working_directory(module_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(module_file.parent)
    module_file.rename("onnxvitq_spec_by_path.py")
    before = list(sys.path)
    source = load_source("onnxvitq_spec_by_path:build", None, 0)
    assert isinstance(source.module, torch.nn.Sequential)
    assert sys.path == before


def test_a_file_may_import_what_lies_beside_it_even_late(tmp_path: Path) -> None:
    (tmp_path / "onnxvitq_spec_sibling.py").write_text("SIZE = 7\n")
    file = tmp_path / "main.py"
    late = "def build():\n    from onnxvitq_spec_sibling import SIZE\n    return nn.Linear(SIZE, 1)\n"
    file.write_text(f"from torch import nn\n{late}")
    assert load_source(f"{file}:build", 8, 0).module.in_features == 7


def test_the_bundled_definition_loads_by_file() -> None:
    source = load_source(f"{MODELS / 'fashion_vit' / 'model.py'}:FashionViT", None, 0)
    assert type(source.module).__name__ == "FashionViT"
    assert shapes(source) == [(2, 1, 28, 28)]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("raising", r"raising\(\) failed: OSError: weights are gone"),
        ("wrong", r"expected wrong\(\) to return a torch\.nn\.Module, got str"),
        (
            "number",
            r"expected a callable 'number' .* got int \(callables there: build, example_inputs, raising, wrong\)",
        ),
        ("absent", r"expected a callable 'absent' .* got NoneType \(callables there: build"),
        ("", r"expected module\.path:factory"),
    ],
)
def test_a_bad_factory_is_one_line(module_file: Path, factory: str, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        load_source(f"{module_file}:{factory}", None, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:", "cannot be imported: SyntaxError"),
        ("import onnxvitq_no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(2)", "cannot be imported: SystemExit: 2"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ExportError, match=message):
        load_source(f"{file}:build", None, 0)


def test_missing_file_and_missing_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a Python file, found nothing"):
        load_source(f"{tmp_path / 'absent.py'}:build", None, 0)
    with pytest.raises(ExportError, match=r"ModuleNotFoundError.*a file is given as path/to/file\.py:factory"):
        load_source("onnxvitq_absent.model:build", None, 0)


# --- example inputs


def test_without_example_inputs_the_image_size_is_needed(module_file: Path) -> None:
    module_file.write_text(MODULE.replace("example_inputs", "something_else"))
    with pytest.raises(ExportError, match=r"shape of the inputs is unknown .*--image-size"):
        load_source(f"{module_file}:build", None, 0)
    assert shapes(load_source(f"{module_file}:build", 4, 0)) == [(2, 3, 4, 4)]


def test_an_image_size_overrides_the_example_and_keeps_its_channels(module_file: Path) -> None:
    module_file.write_text(MODULE.replace("(2, 3, 4, 4)", "(2, 1, 4, 4)"))
    assert shapes(load_source(f"{module_file}:build", 6, 0)) == [(2, 1, 6, 6)]
    module_file.write_text(MODULE.replace("(2, 3, 4, 4)", "(2, 48)"))
    with pytest.raises(ExportError, match=r"needs one input \(B, C, H, W\)"):
        load_source(f"{module_file}:build", 6, 0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3), "tuple of tensors, got Tensor"),
        ((), "tuple of tensors, got tuple"),
        ((1,), "got int inside the tuple"),
        ((torch.zeros(()),), "common batch axis 0"),
        ((torch.zeros(0, 3),), "common batch axis 0"),
        ((torch.zeros(2), torch.zeros(3)), "common batch axis 0"),
    ],
)
def test_wrong_example_inputs(inputs: object, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_inputs(inputs, "spec")


def test_with_batch_repeats_and_cuts_rows() -> None:
    rows = (torch.tensor([[1.0], [2.0]]),)
    assert with_batch(rows, 3)[0].tolist() == [[1.0], [2.0], [1.0]]
    assert with_batch(rows, 1)[0].tolist() == [[1.0]]


# --- bundled names


def test_a_bundled_name_calls_build_and_takes_its_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small_net"
    folder.mkdir()
    (folder / "model.py").write_text(MODULE)
    (folder / "preprocessor_config.json").write_text('{"do_resize": false}')
    monkeypatch.setattr(factories, "BUNDLED", tmp_path)
    source = load_source("small_net", None, 0)
    assert source.preprocessor == '{"do_resize": false}'
    assert shapes(source) == [(2, 3, 4, 4)]


def test_an_unknown_name_says_which_models_are_bundled() -> None:
    with pytest.raises(ExportError, match=r"no such bundled model.* bundled are: fashion_vit"):
        load_source("google/vit-base-patch16-224", None, 0)


def test_a_folder_is_no_bundled_name(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODULE)
    with pytest.raises(ExportError, match=r"nor a folder with a config\.json"):
        load_source(str(tmp_path), None, 0)


def test_an_installed_package_says_that_it_has_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "BUNDLED", tmp_path / "absent")
    with pytest.raises(ExportError, match="only a source checkout has bundled models"):
        load_source("fashion_vit", None, 0)


# --- Hugging Face


@pytest.mark.parametrize("named", ["", "config.json", "vit_s.json"])
def test_a_configuration_alone_gives_seeded_random_weights(tmp_path: Path, named: str) -> None:
    vit_config().save_pretrained(tmp_path)
    spec = str(tmp_path / named)
    if named == "vit_s.json":
        (tmp_path / "config.json").rename(spec)
    with seeded(3):
        source = load_source(spec, None, 3)
    with seeded(3):
        again = load_source(spec, None, 3)
    assert source.weights == "random, seed 3"
    assert source.input_name == "pixel_values"
    assert shapes(source) == [(2, 3, 32, 32)]
    for first, second in zip(source.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_checkpoint_is_loaded_in_float32_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.ViTForImageClassification(vit_config()).half()
    with quiet():
        model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')

    def no_network(*arguments: object) -> None:
        raise AssertionError(f"network used: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    source = load_source(str(tmp_path), None, 0)
    assert (source.weights, source.preprocessor) == ("loaded", '{"image_mean": [0.5]}')
    loaded = dict(source.module.named_parameters())["model.classifier.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, model.classifier.weight.float())


def test_weights_that_a_checkpoint_lacks_are_named(tmp_path: Path) -> None:
    with quiet():
        transformers.ViTModel(vit_config(), add_pooling_layer=False).save_pretrained(tmp_path)
    vit_config().save_pretrained(tmp_path)  # the configuration promises a classifier
    weights = load_source(str(tmp_path), None, 5).weights
    assert weights == "loaded, except (random, seed 5): classifier.bias, classifier.weight"


def test_a_checkpoint_keeps_its_image_size_and_a_configuration_does_not(tmp_path: Path) -> None:
    vit_config().save_pretrained(tmp_path / "config")
    with quiet():
        transformers.ViTForImageClassification(vit_config()).save_pretrained(tmp_path / "checkpoint")
    source = load_source(str(tmp_path / "config"), 64, 0)
    assert source.module(source.inputs[0]).shape == (2, 5)
    assert shapes(source) == [(2, 3, 64, 64)]
    with pytest.raises(
        ExportError, match=r"position_embeddings \(1, 17, 32\), the configuration asks for \(1, 65, 32\)"
    ):
        load_source(str(tmp_path / "checkpoint"), 64, 0)


def test_a_model_without_a_head_gives_features(tmp_path: Path) -> None:
    vit_config(architectures=["ViTModel"]).save_pretrained(tmp_path)
    source = load_source(str(tmp_path), None, 0)
    assert source.module(source.inputs[0]).shape == (2, 17, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the configuration"),
        ("{}", "cannot read the configuration"),
        (json.dumps({"model_type": "vit", "image_size": "wide"}), "Validation error for field 'image_size': .*'wide'"),
        (json.dumps({"model_type": "resnet"}), "expected image_size in the configuration, got None .*--image-size"),
        (json.dumps({"model_type": "vit", "hidden_act": "odd"}), "cannot build the model: KeyError: .*odd"),
    ],
)
def test_a_bad_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        load_source(str(tmp_path), None, 0)


def test_weights_of_another_framework_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    vit_config().save_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot build the model"):
        load_source(str(tmp_path), None, 0)


# --- timm


def test_timm_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ExportError, match=r"needs timm, .*\(pip install timm\)"):
        load_source("timm:vit_tiny_patch16_224", None, 0)


def test_timm_builds_without_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def create_model(name: str, **options: Any) -> torch.nn.Module:
        asked[name] = options
        model: Any = torch.nn.Flatten()
        model.pretrained_cfg = {"input_size": (3, 16, 16)}
        return model

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    assert shapes(load_source("timm:small", None, 1)) == [(2, 3, 16, 16)]
    assert asked == {"small": {"pretrained": False}}
    resized = load_source("timm:small", 8, 1)
    assert shapes(resized) == [(2, 3, 8, 8)]
    assert asked == {"small": {"pretrained": False, "img_size": 8}}
    assert resized.weights == "random, seed 1"
