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
    outcome = attack(recipe, PLAIN)
    assert not outcome.refusal
    assert not outcome.problems, outcome
