"""Channels are shifted and scaled before anything is quantized: exact in float, easier to quantize."""
