"""What 8 bits take over from a quantizer of few bits."""

import numpy as np
import pytest

from onnxvitq.core.formats import activation_format
from onnxvitq.numerics.affine import params_from_range
from onnxvitq.precision.remedies import intended_range

FOUR = activation_format(4)


def test_what_a_rounded_zero_point_cut_off_is_in_the_range_again() -> None:
    """A GELU's output at 4 bits: its step is larger than all that is negative."""
    params = params_from_range(-0.17, 6.79, FOUR)
    assert int(params.zero_point) == 0
    low, high = intended_range(params, (-0.17, 6.79))
    assert low == -0.17
    assert high == pytest.approx(15 * float(params.scale))


def test_a_range_that_was_chosen_to_clip_stays_so_but_for_a_step() -> None:
    params = params_from_range(-1.0, 2.0, FOUR)
    low, high = intended_range(params, (-8.0, 16.0))
    assert (low, high) == pytest.approx((-1 - 0.2, 2 + 0.2), abs=1e-6)
    assert intended_range(params, None) == pytest.approx((-1.0, 2.0), abs=1e-6)
    assert np.isfinite([low, high]).all()
