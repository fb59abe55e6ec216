"""A torch module, a bundled model, a Hugging Face folder or a timm name -> an ONNX file, checked against torch."""
