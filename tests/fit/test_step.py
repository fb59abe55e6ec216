import numpy as np
import pytest

from onnxvitq.fit.step import LayerGain, layer_gain
from onnxvitq.numerics.objectives import sqnr_db

ROUNDING = 1e-6  # the sums are float32


def test_sqnr_worked() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 10.0]], np.float32)
    assert sqnr_db(reference, reference * np.float32(1.5)) == pytest.approx(10 * np.log10(4), rel=ROUNDING)  # error 1/2
    # Error 1 of 25 and 0 of 100: noise 0.04 and 0, on average 0.02.
    one_wrong = np.array([[3.0, 5.0], [0.0, 10.0]], np.float32)
    assert sqnr_db(reference, one_wrong) == pytest.approx(-10 * np.log10(0.02), rel=ROUNDING)
    assert sqnr_db(reference, reference) == 120.0
    assert sqnr_db(reference, -reference) < 0


def test_the_gain_is_the_mean_over_layers() -> None:
    assert layer_gain([10.0, 20.0], [11.0, 20.0005], 1) == LayerGain(before=15.0, after=15.5, kept=1, layers=2)


def test_the_gain_of_nothing() -> None:
    assert layer_gain([], [], 0) == LayerGain(before=None, after=None, kept=0, layers=0)
