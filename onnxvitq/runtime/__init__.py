"""The only user of onnxruntime: sessions, and one streaming sweep over the calibration data."""

import os

# onnxruntime 1.31 writes telemetry to the temporary folder as soon as it is imported; a quantizer has no business there.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
