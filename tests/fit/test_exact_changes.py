"""Which exact changes are tried together, and what such a step proposes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted_cases import correlated, seeded_transformer

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.fit.order import EXACT, steps_of
from onnxvitq.fit.steps.late_softmax import step as late_softmax

EXACT_NAMES = [choice.name for choice in EXACT]


def exact_steps(config: QuantConfig) -> list[str]:
    """Names of the steps that change the graph exactly."""
    return [step.name for step in steps_of(config) if set(step.name.split("+")) <= {"rotation", *EXACT_NAMES}]


def test_with_little_time_all_but_the_rotation_are_one_step() -> None:
    together = "+".join(EXACT_NAMES)
    assert exact_steps(QuantConfig()) == EXACT_NAMES
    assert exact_steps(QuantConfig(effort="fast")) == [together]
    assert exact_steps(QuantConfig(effort="fast", also=("rotation",))) == ["rotation", together]
    assert exact_steps(QuantConfig(effort="fast", skip=("channels",))) == ["online-channels+softmax"]
    assert exact_steps(QuantConfig(effort="fast", skip=("channels", "online-channels", "softmax"))) == []


@pytest.mark.parametrize("skip", [("channels", "online-channels"), ()], ids=["softmax alone", "all"])
def test_where_products_are_chosen_by_themselves_none_divides_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: tuple[str, ...]
) -> None:
    onnx.save(seeded_transformer(0, tokens="9"), tmp_path / "model.onnx")
    data: list[np.ndarray] = [feed["tokens"] for feed in correlated(0, 8)]

    def everywhere(layers: object, *_: object) -> dict[str, float]:
        return {attention.name: 9.0 for attention in layers.blockmap.attentions}  # type: ignore[attr-defined]

    monkeypatch.setattr(late_softmax, "attentions_to_divide_late", everywhere)
    proposed = {}
    for attention in ("auto", "mixed"):
        config = QuantConfig(attention=attention, skip=(*skip, "scales", "weights", "bias"), threads=1)  # type: ignore[arg-type]
        report = quantize(tmp_path / "model.onnx", data, tmp_path / "out.onnx", config).report.to_dict()
        (step,) = [step for step in report["steps"] if step["name"] == "softmax"]
        proposed[attention] = [part["part"] for part in step["parts"]]
    assert proposed["mixed"] == []
    assert len(proposed["auto"]) == 2
