"""Which exact changes are tried together, and what a round proposes."""

from pathlib import Path

import pytest
from fitted_cases import build_case, correlated, seeded_transformer

from onnxvitq.core.config import QuantConfig, StepName
from onnxvitq.fit import exact_changes as exact
from onnxvitq.fit.exact_changes import propose, rounds_of_changes


def test_with_little_time_all_but_the_rotation_are_one_round() -> None:
    three: tuple[StepName, ...] = ("channels", "online-channels", "softmax")
    assert rounds_of_changes(QuantConfig()) == [(name,) for name in three]
    assert rounds_of_changes(QuantConfig(effort="fast")) == [three]
    assert rounds_of_changes(QuantConfig(effort="fast", also=("rotation",))) == [("rotation",), three]
    assert rounds_of_changes(QuantConfig(effort="fast", skip=("channels",))) == [three[1:]]
    assert rounds_of_changes(QuantConfig(effort="fast", skip=three)) == []


@pytest.mark.parametrize("steps", [("softmax",), ("channels", "online-channels", "softmax")])
def test_where_products_are_chosen_by_themselves_none_divides_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[str, ...]
) -> None:
    case = build_case(seeded_transformer(0, tokens="9"), correlated(0, 8), tmp_path, bits=8, attention="int8")
    names = [one.name for one in case.layers.blockmap.attentions]
    monkeypatch.setattr(exact, "attentions_to_divide_late", lambda *_: dict.fromkeys(names, 9.0))
    late = {}
    for attention in ("auto", "mixed"):
        config = QuantConfig(attention=attention)
        proposal = propose(case.graph, case.layers, case.plan, case.stats, steps, config)  # type: ignore[arg-type]
        assert proposal.change is not None
        late[attention] = list(proposal.change.late)
        assert sum(part["part"].startswith("softmax") for part in proposal.parts) == len(late[attention])
    assert late == {"auto": names, "mixed": []}
