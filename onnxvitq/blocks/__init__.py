"""Patterns of the layers of a Vision Transformer in ONNX, as data, and the search that returns a BlockMap."""
