"""Method "aiqvit" from the outside: a sound model, the steps in the report, nothing left behind."""

from pathlib import Path

import pytest

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.fit import acceptance, exact_changes
from onnxvitq.fit.steps.block_learning import available


@pytest.mark.slow
def test_blocks_are_learned_and_the_model_is_sound(vit_file: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "learned.onnx"
    output.parent.mkdir()
    stages: list[str] = []
    config = QuantConfig(method="aiqvit", iterations=4, bits="w3a4", branch_budget=0.5, threads=1)
    result = quantize(vit_file, images, output, config, progress=lambda stage, done, total: stages.append(stage))
    assert result.audit.sound
    steps = {step["name"]: step for step in result.report.to_dict()["steps"]}
    assert list(steps)[-2:] == ["branches", "reconstruction"]
    assert [part["unit"] for part in steps["reconstruction"]["parts"]] == [0, 1, 2]
    assert any(stage.startswith("learn (loss") for stage in stages)
    assert result.report.to_dict()["branches"]["found"] == 2 * len(result.plan.branches)
    assert [path.name for path in output.parent.iterdir()] == ["learned.onnx"]


@pytest.mark.slow
def test_what_is_refused_leaves_the_score_as_it_was(
    vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (acceptance, exact_changes):
        monkeypatch.setattr(module, "does_no_harm", lambda *_: False)
    config = QuantConfig(method="aiqvit", iterations=1, bits="w3a4", branch_budget=0.5, threads=1)
    report = quantize(vit_file, images, tmp_path / "out.onnx", config).report.to_dict()
    steps = {step["name"]: step for step in report["steps"]}
    last = [steps[name] for name in ("weights", "branches", "reconstruction")]
    assert [step["accepted"] for step in last] == [False] * 3
    assert len({step["before"] for step in last}) == 1
    assert len({step["after"] for step in last}) > 1
    assert report["branches"]["found"] == 0


def test_without_torch_nothing_is_begun(
    vit_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torch"):
        quantize(vit_file, images, tmp_path / "out.onnx", QuantConfig(method="aiqvit"))
    assert not (tmp_path / "out.onnx").exists()
