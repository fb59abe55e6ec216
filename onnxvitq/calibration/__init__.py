"""The calibration dataset, and statistics of a network that are measured on it."""
