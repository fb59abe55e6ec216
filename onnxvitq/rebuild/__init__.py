"""Weights solved again one layer after the other, on a float and a quantized network that run side by side."""
