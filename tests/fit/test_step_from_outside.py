"""A step that is no part of the package: one object, handed to ``quantize``, runs in its place and is in the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted_cases import correlated, seeded_transformer

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.order import ORDER
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.report.records import Part, Section, to_dict


@dataclass(frozen=True)
class Stretched:
    """Makes every activation's scale larger; nothing in the package knows it."""

    factor: float
    acceptance: Acceptance = Acceptance.ALL_OR_NOTHING
    name: str = "stretched"

    def runs(self, config: QuantConfig) -> bool:
        return config.objective != "minmax"

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        assert context.config.evaluated
        return [StatisticsRequest(tensor=linear.input, kind="channels") for linear in state.layers.blockmap.linears]

    def propose(self, state: FitState, context: FitContext) -> Proposal | None:
        inputs = {linear.input for linear in state.layers.blockmap.linears}
        assert inputs <= state.statistics.channels.keys()  # what it asked for was measured
        fitted = {}
        for tensor, decision in state.plan.decisions.items():
            if decision.site.kind == "activation" and decision.params is not None:
                scale = np.asarray(decision.params.scale * np.float32(self.factor))
                fitted[tensor] = type(decision.params)(
                    spec=decision.params.spec, scale=scale, zero_point=decision.params.zero_point
                )
        parts = tuple(Part(part=tensor, figures={"factor": self.factor}) for tensor in fitted)
        return Proposal(
            acceptance=self.acceptance,
            plan=state.plan.with_params(fitted),
            gain=LayerGain(kept=len(fitted), layers=len(fitted)),
            parts=parts,
            section=Section(key="stretched", content={"factor": self.factor}),
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steps") / "model.onnx"
    onnx.save(seeded_transformer(0, tokens="9"), path)
    return path


DATA = [feed["tokens"] for feed in correlated(0, 12)]
CONFIG = QuantConfig(effort="fast", threads=1)


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (40.0, False)], ids=["harmless", "ruinous"])
def test_it_is_evaluated_recorded_and_kept_only_where_it_does_no_harm(
    model: Path, tmp_path: Path, factor: float, accepted: bool
) -> None:
    steps = (*ORDER, Stretched(factor))
    report = to_dict(quantize(model, DATA, tmp_path / "out.onnx", CONFIG, steps=steps).report)
    step = report["steps"][-1]
    assert (step["name"], step["accepted"]) == ("stretched", accepted)
    assert step["kept"] == (step["layers"] if accepted else 0)
    assert step["before"] == pytest.approx(report["steps"][-2]["after"], abs=0.01)
    assert {part["factor"] for part in step["parts"]} == {factor}
    assert report["stretched"] == {"factor": factor}


def test_its_place_in_the_order_counts(model: Path, tmp_path: Path) -> None:
    first, *others = ORDER
    steps = (first, Stretched(1.0), *others)
    report = to_dict(quantize(model, DATA, tmp_path / "out.onnx", CONFIG, steps=steps).report)
    assert [step["name"] for step in report["steps"]][:2] == ["minmax", "stretched"]


def test_it_runs_only_where_it_says_so(model: Path, tmp_path: Path) -> None:
    steps = (*ORDER, Stretched(1.0))
    config = QuantConfig(objective="minmax", threads=1)
    report = to_dict(quantize(model, DATA, tmp_path / "out.onnx", config, steps=steps).report)
    assert "stretched" not in [step["name"] for step in report["steps"]]
    assert "stretched" not in report


def test_what_is_kept_is_written(model: Path, tmp_path: Path) -> None:
    """A step that must gain is not kept for doing no harm; one that does it by itself is not asked."""
    scales = {}
    for acceptance in (Acceptance.MUST_GAIN, Acceptance.DECIDED):
        path = tmp_path / f"{acceptance.name}.onnx"
        quantize(model, DATA, path, CONFIG, steps=(*ORDER, Stretched(2.0, acceptance)))
        scales[acceptance] = sum(
            float(onnx.numpy_helper.to_array(tensor))
            for tensor in onnx.load(path).graph.initializer
            if tensor.name.endswith("_scale") and not tensor.dims
        )
    assert scales[Acceptance.DECIDED] == pytest.approx(2 * scales[Acceptance.MUST_GAIN], rel=1e-6)
