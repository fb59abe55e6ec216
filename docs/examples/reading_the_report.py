"""What the report says: accuracy, kernels, what each step did, and the same as JSON."""

import json

import onnxvitq

config = onnxvitq.QuantConfig(effort="fast", num_samples=16)
result = onnxvitq.quantize("models/fashion_vit/model.onnx", "models/fashion_vit/calib", "reading_int8.onnx", config)
report = result.report

compare = report.compare
print(f"output {compare.output}: SQNR {compare.sqnr_db} dB on {compare.samples} calibration samples")
linears = report.audit.linears
print(f"{linears.integer_kernels} of {linears.quantized} quantized linears on integer kernels")
for layer in linears.in_float:
    print(f"in float: {layer.name}: {layer.reason}")
for step in report.steps:
    print(f"{step.name}: kept {step.kept} of {step.layers}, output SQNR {step.before} -> {step.after} dB")

# The JSON report has the same records under documented keys; --report FILE writes it.
keys = json.loads(json.dumps(report.to_dict()))
print("size:", keys["size_mb"]["quantized"], "of", keys["size_mb"]["float"], "MB")
