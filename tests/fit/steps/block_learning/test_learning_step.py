"""Block learning as a step: every part of its report has a name, and torch is missed before the work begins."""

from collections.abc import Callable

import pytest
from fitted_cases import Case

from onnxvitq.core.errors import ConfigError
from onnxvitq.fit.step import Acceptance
from onnxvitq.fit.steps.block_learning import available
from onnxvitq.fit.steps.block_learning.step import BlockLearning

TransformerCase = Callable[..., Case]


def test_each_block_is_a_part_with_a_name(transformer_case: TransformerCase) -> None:
    case = transformer_case(8, bits=3)
    proposal = BlockLearning().propose(case.state(), case.context(method="aiqvit", iterations=4))
    assert proposal.acceptance is Acceptance.ALL_OR_NOTHING
    assert proposal.gain.layers == 3
    assert [part.part for part in proposal.parts] == ["block 0", "block 1", "block 2"]
    assert [part.figures["unit"] for part in proposal.parts] == [0, 1, 2]
    assert proposal.gain.kept == sum(bool(part.accepted) for part in proposal.parts)
    for part in proposal.parts:
        assert part.before is not None
        assert part.after is not None
        assert part.accepted == (part.after > part.before)


def test_without_torch_it_says_so_when_it_is_asked_what_it_needs(
    transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = transformer_case(4)
    context = case.context(method="aiqvit")
    assert BlockLearning().needs(case.state(), context) == ()
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torch"):
        BlockLearning().needs(case.state(), context)
