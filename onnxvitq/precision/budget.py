"""The best choice of widths within a budget of bits or bytes, and whether it is worth the nodes that it adds.

Errors of different groups add up, so the best choice within a budget is a knapsack's, solved exactly (``numerics.allocate``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.plan import Layers
from onnxvitq.numerics.allocate import least_error
from onnxvitq.numerics.decibels import decibels
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.written import WrittenChoices

# What a choice must be predicted to gain over the same width for all that fits the budget. Bundled model, validation images:
# 0.6 dB predicted at 4 bits came to -0.2 dB by module and 0.1 dB by layer once everything was fitted, 1.3 dB at 5 bits to 0.0
# dB: each layer is solved against what those before it left.
WORTH_DB = 1.5
DB_A_BIT = decibels(4)  # what another bit gains: half the step, a quarter of the power of the error
UNPACKING = 8192  # bytes of nodes, at most, for weights of one width and number of outputs
SIZE_TRIES = 5  # graphs written to meet a size in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetedChoice:
    """A choice and the budget that it was made within.

    Attributes:
        options: number of each group's option.
        budget: bits that the groups' weights may take.
    """

    options: tuple[int, ...]
    budget: float


def best_of_mean(costs: WidthCosts, average_bits: float) -> BudgetedChoice:
    """The best choice with that mean of bits.

    Raises:
        ConfigError: the mean is below the smallest width.
    """
    budget = average_bits * costs.elements
    try:
        options = least_error(list(costs.sizes), list(costs.errors), budget)
    except ValueError as error:
        message = f"expected at least {costs.widths[0]} bits, got {average_bits:.4g}"
        raise ConfigError("average_bits", message, "allow fewer bits with bit_candidates") from error
    return BudgetedChoice(options=tuple(options), budget=budget)


def best_of_size(costs: WidthCosts, written: WrittenChoices, megabytes: float) -> BudgetedChoice:
    """The best choice whose file is small enough. It is met by writing: what unpacking adds depends on the widths.

    Raises:
        ConfigError: even the smallest choice is larger.
    """
    asked = megabytes * 1e6
    other = written(costs.same(len(costs.widths) - 1)).other_bytes
    for _ in range(SIZE_TRIES):
        budget = 8 * (asked - other)
        try:
            options = tuple(least_error(list(costs.sizes), list(costs.errors), budget))
        except ValueError:
            break
        file = written(options)
        excess = file.file_bytes - asked
        if excess <= 0:
            return BudgetedChoice(options=options, budget=budget)
        other = max(file.other_bytes, other + excess)
    smallest = costs.same(0)
    least = written(smallest).file_bytes
    if least > asked:
        message = f"expected at least {least / 1e6:.4g} MB, got {asked / 1e6:.4g}"
        raise ConfigError("target_size", message, "allow fewer bits with bit_candidates")
    return BudgetedChoice(options=smallest, budget=0)


def same_width_within(costs: WidthCosts, budget: float) -> tuple[int, ...]:
    """The largest width for all within a budget in bits; the smallest there is where none fits."""
    fitting = [option for option, width in enumerate(costs.widths) if width * costs.elements <= budget]
    return costs.same(fitting[-1] if fitting else 0)


def is_worth(
    costs: WidthCosts,
    layers: Layers,
    written: WrittenChoices,
    pair: tuple[Sequence[int], Sequence[int]],
    gain_db: float,
) -> bool:
    """Whether so many dB over the same width for all are enough: several widths take more nodes to unpack, and for those
    bytes the same width would gain as well.

    Args:
        costs: of all widths.
        layers: whose weights these are.
        written: files of choices; made only where an estimate does not settle it.
        pair: the choice, and that of the same width for all.
        gain_db: output SQNR that the choice is predicted to gain.
    """
    choice, uniform = pair
    if gain_db < WORTH_DB:
        return False
    outputs = {layers.constants[name].shape[-1] for group in costs.groups for name in group.weights}
    dearer: float = UNPACKING * len(outputs) * len(set(choice))  # at most
    if gain_db < WORTH_DB + DB_A_BIT * 8 * dearer / costs.elements:
        dearer = written(choice).other_bytes - written(uniform).other_bytes
    return gain_db >= WORTH_DB + DB_A_BIT * 8 * max(dearer, 0) / costs.elements
