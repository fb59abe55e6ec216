"""The one rule that says which calibration samples are held out: they evaluate what is fitted to the others."""

import numpy as np

from onnxvitq.core.tensors import FloatArray

HELD_OUT_EVERY = 4  # one in four calibration samples is held out; three are fitted to


def is_held_out(sample: int) -> bool:
    """Whether a calibration sample, counted from 0, is held out for evaluation instead of being fitted to."""
    return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def split_samples(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Samples (S, ..) split into (fitted to, held out); with fewer than four samples all of them are both."""
    held = np.array([is_held_out(index) for index in range(len(samples))], bool)
    return (samples[~held], samples[held]) if held.any() else (samples, samples)
