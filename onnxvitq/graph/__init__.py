"""Reading, checking, canonicalising, matching and saving ONNX graphs (onnx and onnx-graphsurgeon; no numerics, no runtime)."""
