"""Weight reconstruction as a step: what it proposes, and where the statistics are meanwhile."""

from collections.abc import Callable

import numpy as np
import pytest
from fitted_cases import Case

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import OutputError
from onnxvitq.fit.step import Acceptance
from onnxvitq.fit.steps.weight_reconstruction import step as step_module
from onnxvitq.fit.steps.weight_reconstruction.step import WeightReconstructionStep

TransformerCase = Callable[..., Case]


@pytest.mark.parametrize(
    ("options", "runs"), [({}, True), ({"method": "search"}, False), ({"skip": ("weights",)}, False)]
)
def test_it_runs_where_weights_are_asked_for(options: dict[str, object], runs: bool) -> None:
    assert WeightReconstructionStep().runs(QuantConfig(**options)) == runs  # type: ignore[arg-type]


def test_all_weights_are_proposed_together(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=8)
    state = case.state()
    rows = {name: values.copy() for name, values in case.stats.rows.items()}
    proposal = WeightReconstructionStep().propose(state, case.context())
    assert proposal.acceptance is Acceptance.ALL_OR_NOTHING
    assert proposal.plan is not None
    assert len(proposal.plan.weights) == proposal.gain.layers == 13
    assert case.plan.weights == {}
    assert state.statistics.rows.keys() == rows.keys()
    assert all(np.array_equal(state.statistics.rows[name], values) for name, values in rows.items())
    assert not state.statistics.lefts  # those are for the scale search alone


def test_a_full_disk_is_said_in_one_line(transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step_module, "reconstruct_weights", full)
    case = transformer_case(samples=4)
    with pytest.raises(OutputError, match="No space left on device"):
        WeightReconstructionStep().propose(case.state(), case.context())
