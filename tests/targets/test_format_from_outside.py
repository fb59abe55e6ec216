"""A number format that no kernel has, int16 activations, is one object: fitted, evaluated and written in simulated form."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted_cases import correlated, seeded_transformer
from textgraph import run

from onnxvitq.api import Result, quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import NumberFormat
from onnxvitq.targets.ort_cpu.target import OrtCpu

INT16 = NumberFormat(bits=16, signed=True, symmetric=True)
FEEDS = [feed["tokens"] for feed in correlated(0, 16)]
REASON = "simulated: onnxruntime's CPU provider has no integer kernel of int16 activations"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("format") / "model.onnx"
    onnx.save(seeded_transformer(0, tokens="9"), path)
    return path


def quantized(model: Path, name: str, number: NumberFormat | None) -> Result:
    config = QuantConfig(threads=1, attention="int8", activations="static")
    return quantize(model, FEEDS, model.with_name(name), config, target=OrtCpu(activations=number))


@pytest.fixture(scope="module")
def simulated(model: Path) -> Result:
    return quantized(model, "int16.onnx", INT16)


@pytest.fixture(scope="module")
def native(model: Path) -> Result:
    return quantized(model, "uint8.onnx", None)


def test_it_is_more_accurate_than_eight_bits(model: Path, simulated: Result, native: Result) -> None:
    assert simulated.report.compare.sqnr_db > native.report.compare.sqnr_db + 3
    feed = {"tokens": correlated(9, 1)[0]["tokens"]}  # none of the samples
    exact = run(onnx.load(model), feed)[0]
    errors = [float(np.abs(run(onnx.load(result.output), feed)[0] - exact).mean()) for result in (simulated, native)]
    assert errors[0] < errors[1] / 1.3


def test_the_written_codes_are_those_of_the_format(simulated: Result) -> None:
    graph = onnx.load(simulated.output).graph
    operators = [node.op_type for node in graph.node]
    assert "QuantizeLinear" not in operators
    assert operators.count("Round") == operators.count("Clip") > 0
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    highest = {float(values) for name, values in constants.items() if name.endswith("_highest")}
    assert highest == {float(INT16.qmax)}
    specs = [decision.spec for decision in simulated.plan.decisions.values() if decision.site.kind == "activation"]
    assert {spec.number for spec in specs} == {INT16}


def test_audit_and_report_say_simulated_and_why(simulated: Result, native: Result) -> None:
    for kind in ("linears", "attention_products"):
        counts = simulated.report.to_dict()[kind]
        assert counts["found"] == counts["quantized"] == counts["simulated"] > 0
        assert counts["integer_kernels"] == 0
        assert {layer["reason"] for layer in counts["float"]} == {REASON}
        of_bytes = native.report.to_dict()[kind]
        assert of_bytes["integer_kernels"] == of_bytes["quantized"] > 0 == of_bytes["simulated"]
    assert simulated.audit.sound
    assert simulated.report.target == "ort-cpu (auto, int16 activations)"
    assert {layer.bits for layer in simulated.report.bits.layers} == {"w8a16"}
    assert simulated.report.saturation.looked_at == 0
