"""Weights solved again, layer after layer, against what the quantized network reads."""
