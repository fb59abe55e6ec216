"""onnxruntime's CPU execution provider."""
