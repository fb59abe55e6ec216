"""What a Vision Transformer looks like in ONNX: patterns as constants, and the search that returns a BlockMap."""
