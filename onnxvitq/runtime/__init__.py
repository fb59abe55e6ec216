"""The only user of onnxruntime: sessions, and one streaming sweep over the calibration data."""
