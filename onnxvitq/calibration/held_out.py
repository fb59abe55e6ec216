"""Which calibration samples are held out: they evaluate what the others were used to fit."""

import numpy as np

from onnxvitq.core.tensors import FloatArray

HELD_OUT_EVERY = 4  # of the calibration samples, one in four judges what the other three fitted


def is_held_out(sample: int) -> bool:
    """Whether the calibration sample of that number judges instead of being fitted to."""
    return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def split_samples(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(fitted on, held out) of (S, ..): every fourth sample is held out; all samples serve as both when there are fewer."""
    held = np.array([is_held_out(index) for index in range(len(samples))], bool)
    return (samples[~held], samples[held]) if held.any() else (samples, samples)
