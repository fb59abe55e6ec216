"""Calibration samples, and what is measured of a network on them."""
