"""Random small transformers: is each refused in one line, or no output worse than plain min-max quantization leaves it?

    python tools/attack.py [--examples 5000] [--seed 0] [--plain] [--only FIELD=VALUE] [--write [NAME]]

Draws recipes (tests/attack/recipes.py: forms of attention, norms, feed-forward parts, outputs, sub-graphs, layouts, opsets,
unusual sizes), builds each (tests/attack/small_transformers.py), quantizes it twice and holds every output of fresh samples
against the float model's (tests/attack/oracle.py). A recipe that fails is printed as the Python text that makes it. With few
outputs and samples a decibel is a matter of luck, too: the table says how many outputs are how much worse. Exit status 1 when
any fails. The modules live in tests, which must not need tools.
"""

import ast
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from tables import Results, Table, columns, finish, parser_of, provenance

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / folder) for folder in ("attack", "")]
from oracle import MARGIN_DB, PLENTY_DB
from outcome import Outcome, attack
from recipes import Recipe, recipes

from onnxvitq.core.config import QuantConfig

USUAL, PLAIN = QuantConfig(threads=1), QuantConfig(objective="minmax", target="x86-vnni", threads=1)
STEPS_DB = (MARGIN_DB, 3.0, 6.0)
WORDS = 6  # of a refusal, which tell what kind it is


def outcomes(examples: int, number: int, fixed: dict[str, Any], config: QuantConfig, console: Console) -> list[Outcome]:
    """Of as many recipes, each printed when it fails."""
    found: list[Outcome] = []

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes(**fixed))
    def draw(recipe: Recipe) -> None:
        found.append(attack(recipe, config))
        for problem in found[-1].problems:
            console.print(f"{recipe!r}: {problem}", highlight=False, markup=False, soft_wrap=True)

    draw()
    return found


def results_of(found: Sequence[Outcome]) -> Results:
    """How many of what; how much worse than plain quantization outputs are."""
    written = [outcome for outcome in found if not outcome.refusal and outcome.outputs]
    gaps = [
        min(one.wanted, PLENTY_DB) - min(one.got, PLENTY_DB)
        for outcome in written
        for one in outcome.outputs
        if np.isfinite(one.wanted) and not np.isnan(one.got)
    ]
    reasons = Counter(
        " ".join(outcome.refusal.split(": ", 1)[-1].split()[:WORDS]) for outcome in found if outcome.refusal
    )
    about = (
        f"{len(found)} small transformers: {len(written)} written, {sum(reasons.values())} refused, "
        f"{sum(bool(outcome.problems) for outcome in found)} wrong.",
    )
    tables = (
        Table(
            columns=columns("outputs worse than plain quantization by more than", "of all"),
            rows=[(f"{step:.0f} dB", f"{sum(gap > step for gap in gaps)} of {len(gaps)}") for step in STEPS_DB],
        ),
        Table(columns=columns("refused because", "models"), rows=list(reasons.most_common())),
    )
    return Results(name="attack", tables=tables, made=provenance(), about=about)


def fixed_field(text: str) -> tuple[str, Any]:
    """``name=value`` of a recipe; the value is Python where it can be read so, else text."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main() -> int:
    """Draw, evaluate, print; whether all went well."""
    parser = parser_of(__doc__, "attack")
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="min-max ranges and full weights, without any other step")
    parser.add_argument(
        "--only", type=fixed_field, action="append", default=[], help="a field of every recipe; repeatable"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = outcomes(args.examples, args.seed, dict(args.only), PLAIN if args.plain else USUAL, Console())
    finish(results_of(found), args.write)
    return 1 if any(outcome.problems for outcome in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
