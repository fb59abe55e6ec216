"""Choices within a budget of bits or bytes, by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from onnxvitq.core.errors import ConfigError
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.precision.budget import DB_A_BIT, WORTH_DB, best_of_mean, best_of_size, is_worth, same_width_within
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.groups import LayerGroup
from onnxvitq.precision.written import WrittenChoice, WrittenChoices

A, B = (LayerGroup(name=name, linears=(name,), weights=(f"{name}_W",), size=1000) for name in "ab")
# The first group gains much from bits, the second little.
COSTS = WidthCosts(
    groups=(A, B),
    widths=(2, 4, 8),
    sizes=np.array([[2000, 4000, 8000]] * 2),
    errors=np.array([[1.0, 0.1, 0.001], [0.02, 0.01, 0.001]]),
)
NOTHING = BlockMap(blocks=(), attentions=(), linears=(), norms=(), unmatched=())
LAYERS = Layers(blockmap=NOTHING, constants={name: np.zeros((10, 100), np.float32) for name in ("a_W", "b_W")})


class Files(WrittenChoices):
    """Files that are not written: 500 bytes beside the weights, and some more for each further width."""

    def __init__(self, for_a_width: float) -> None:
        self.made: list[tuple[int, ...]] = []
        self._for_a_width = for_a_width

    def __call__(self, choice: Sequence[int]) -> WrittenChoice:
        """By the number of widths."""
        self.made.append(tuple(choice))
        other = 500 + self._for_a_width * (len(set(choice)) - 1)
        return WrittenChoice(plan=QuantPlan(), other_bytes=other, weight_bytes=COSTS.size(choice) / 8)


def test_bits_go_where_they_gain_most() -> None:
    assert best_of_mean(COSTS, 4.0).options == (1, 1)  # 8 and 2 would be a mean of 5
    assert best_of_mean(COSTS, 5.0).options == (2, 0)
    assert best_of_mean(COSTS, 5.0).budget == 10_000


def test_a_mean_below_the_smallest_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"average_bits: expected at least 2 bits, got 1\.5"):
        best_of_mean(COSTS, 1.5)


@pytest.mark.parametrize(("budget", "option"), [(16_000, 2), (15_999, 1), (8_000, 1), (100, 0)])
def test_the_largest_width_for_all_that_fits(budget: float, option: int) -> None:
    assert same_width_within(COSTS, budget) == (option, option)


def test_a_size_is_met_with_what_unpacking_adds() -> None:
    """Of 1750 bytes, 8 and 2 bits take 1250, and 500 are for the rest; with 100 more to unpack, they are too many."""
    assert best_of_size(COSTS, Files(0), 1750e-6).options == (2, 0)
    files = Files(100)
    chosen = best_of_size(COSTS, files, 1750e-6)
    assert chosen.options == (1, 1)
    assert files(chosen.options).file_bytes <= 1750
    with pytest.raises(ConfigError, match=r"target_size: expected at least 0\.001 MB, got 0\.0009"):
        best_of_size(COSTS, Files(0), 900e-6)


def test_what_gains_little_is_not_worth_it_and_no_file_is_made() -> None:
    files = Files(0)
    assert not is_worth(COSTS, LAYERS, files, ((2, 0), (1, 1)), WORTH_DB - 0.01)
    assert files.made == []


def test_bytes_of_unpacking_have_to_be_gained_in_db() -> None:
    """500 bytes are 2 bits for each of 2000 weights, and these would gain 12 dB."""
    files = Files(500)
    price = WORTH_DB + 2 * DB_A_BIT
    pair = ((2, 0), (1, 1))
    assert [is_worth(COSTS, LAYERS, files, pair, price + change) for change in (-0.01, 0.01)] == [False, True]
    assert pair[0] in files.made
