"""What is said of a quantization: records and their renderers."""
