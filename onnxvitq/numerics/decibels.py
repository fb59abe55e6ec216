"""Ratios of powers in decibels: the one place where a logarithm becomes dB.

The signal-to-quantization-noise ratio (SQNR) is 10 log10(signal power / error power). Steps keep or drop what they propose by
comparing such figures, so every function states its caps, and what is divided by what: 10 log10(a / b) and -10 log10(b / a)
differ in the last bit.
"""

import math
import sys

CAP_DB = 120.0  # equal outputs would be infinitely many dB; JSON has no infinity
SMALLEST_ERROR = 1e-12  # relative error power that is CAP_DB
NOTHING = 1e-30  # of the signal's power: an error below it is none


def decibels(ratio: float) -> float:
    """10 log10 of a ratio of powers, at least 0; minus infinity of 0."""
    return -math.inf if ratio == 0 else 10.0 * math.log10(ratio)


def sqnr(signal: float, noise: float) -> float:
    """SQNR in dB from two powers (or sums of squares), from -120 to 120; 120 without noise, -120 where a power is NaN."""
    if noise == 0:
        return CAP_DB
    ratio = signal / noise
    return max(-CAP_DB, min(CAP_DB, decibels(ratio))) if ratio > 0 else -CAP_DB


def sqnr_of_error(error: float, signal: float = 1.0, *, smallest: float = SMALLEST_ERROR) -> float:
    """SQNR in dB as -10 log10(error / signal).

    Args:
        error: power of the error, at least 0.
        signal: power of the signal; 1 where ``error`` is relative to it already.
        smallest: relative error that a smaller one counts as. The default caps the result at 120 dB; 0 does not cap it.

    Returns:
        At least -300 dB, which is what any error of no signal is.
    """
    return -decibels(min(max(error / max(signal, sys.float_info.min), smallest), 1 / NOTHING))


def gain_db(before: float, after: float, signal: float = 1.0) -> float:
    """By how many dB an error's power fell; 0 dB where both are nothing beside the signal's power."""
    smallest = max(NOTHING * signal, sys.float_info.min)
    return decibels(max(before, smallest) / max(after, smallest))


def error_power(sqnr_db: float) -> float:
    """Error power over signal power, of an SQNR in dB."""
    return float(10 ** (-sqnr_db / 10))
