"""Any small transformer is refused in one line, or every output of what is written is as near as by plain min-max.

A few recipes, always the same ones; ``python tools/attack.py --examples 5000`` draws others.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from outcome import attack
from recipes import MAGNITUDES, Recipe, recipes

from onnxvitq.core.config import QuantConfig

# How long a model takes depends on the machine; and a failure is shown as it is drawn: shrinking takes a fit a step.
FEW = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
PLAIN = QuantConfig(objective="minmax", target="x86-vnni", threads=1)


@FEW
@given(recipe=recipes(dtype="float32", subgraph="none"))
def test_any_small_transformer(recipe: Recipe) -> None:
    outcome = attack(recipe, PLAIN)
    assert not outcome.problems, outcome


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_sizes_near_the_ends_of_float32(magnitude: str) -> None:
    recipe = Recipe(activation="relu", ffn="gated", outputs=("logits", "tokens", "hidden"), magnitude=magnitude)
    outcome = attack(recipe, PLAIN, twice=False)
    assert not outcome.refusal
    assert not outcome.problems, outcome


USUAL = QuantConfig(threads=1)


def test_a_whole_fit_does_not_depend_on_the_unit() -> None:
    """Of a head whose weights are 1e-31 of what they were, or 1e37 times that, every search has to find the same."""
    kinds = ("usual", "tiny head", "largest head")
    drawn = [Recipe(activation="relu", ffn="gated", outputs=("logits", "tokens"), magnitude=kind) for kind in kinds]
    levels = [[one.got for one in attack(recipe, USUAL, twice=False).outputs] for recipe in drawn]
    for one in levels[1:]:
        assert one == pytest.approx(levels[0], abs=0.1)  # an integer that a rounded unit moved


def test_channels_of_pooled_rows_are_not_scaled_by_the_few_that_were_seen() -> None:
    """24 samples are 18 rows of the head's input: a channel that fills its range clips one in ten of others."""
    outcome = attack(Recipe(outputs=("logits", "tokens")), USUAL, twice=False)
    assert not outcome.refusal
    assert not outcome.problems, outcome
