"""Post-training quantizer for Vision Transformers: a float ONNX graph in, a graph on onnxruntime's int8 kernels out."""
