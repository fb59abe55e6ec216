"""The report's keys, its values, and what it is put together from."""

import json
from dataclasses import replace

import pytest

from onnxvitq.api import Result
from onnxvitq.report.build import environment, other_sections, section
from onnxvitq.report.model_records import Audit, FloatLayer, LayerCounts, OutputComparison
from onnxvitq.report.records import Part, Section, SensitivityReport, StepRecord, to_dict
from onnxvitq.report.renderers.as_json import ReportJson
from onnxvitq.report.report import Report


@pytest.fixture
def report(quantized: Result) -> Report:
    return quantized.report


def test_every_documented_key_is_there(quantized: Result) -> None:
    report = quantized.report.to_dict()
    assert (report["blocks"], report["attention"]) == (2, 2)
    assert report["linears"] == {
        "found": 13,
        "quantized": 13,
        "integer_kernels": 13,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert (report["unmatched"], report["products"]) == ([], [])
    assert report["other_products"] == {
        "found": 0,
        "quantized": 0,
        "integer_kernels": 0,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert set(report["compare"]) == {"output", "samples", "sqnr_db", "cosine", "top1_agreement", "optimised_vs_plain"}
    assert set(report["size_mb"]) == {"float", "quantized"}
    assert set(report["bits"]) == {"layers", "weights_mb", "values_mb", "expected_mb"}
    assert [layer["bits"] for layer in report["bits"]["layers"]] == ["w8a8"] * 14
    assert report["unpacked_at_run_time"] == []
    assert list(report["seconds"]) == ["load", "calibrate", "fit", "write", "audit", "compare", "total"]
    assert [step["name"] for step in report["steps"]] == [
        "minmax",
        "channels",
        "online-channels",
        "softmax",
        "scales",
        "attention",
        "weights",
    ]
    assert all({"name", "accepted", "before", "after"} <= set(step) for step in report["steps"])
    assert {"onnxvitq", "onnx", "onnxruntime", "numpy", "python", "processor", "threads"} <= set(report["environment"])


def test_values_are_of_their_units(quantized: Result) -> None:
    report = quantized.report.to_dict()
    assert 0 <= report["compare"]["top1_agreement"] <= 1
    assert 0.99 < report["compare"]["cosine"] <= 1
    assert 0 < report["size_mb"]["quantized"] < report["size_mb"]["float"] < 1  # megabytes
    stages = [value for name, value in report["seconds"].items() if name != "total"]
    assert sum(stages) <= report["seconds"]["total"] + 0.001 * len(stages)  # each rounded to a millisecond
    steps = [step["seconds"] for step in report["steps"]]
    assert min(steps) > 0
    assert sum(steps) <= report["seconds"]["fit"] + 0.001 * len(steps)


def test_json_round_trips(report: Report) -> None:
    text = ReportJson().render(report)
    assert text.endswith("}\n")
    assert json.loads(text) == report.to_dict()
    assert list(json.loads(text)) == list(report.to_dict())


def test_json_refuses_what_json_does_not_have(report: Report) -> None:
    broken = replace(report, compare=replace(report.compare, sqnr_db=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        ReportJson().render(broken)


def test_keys_that_users_have_stay() -> None:
    """Fields are named in Python as Python likes it; in the JSON they are called as they were."""
    counts = LayerCounts(found=3, quantized=2, integer_kernels=1, in_float=(FloatLayer(name="fc", reason="why"),))
    expected = {
        "found": 3,
        "quantized": 2,
        "integer_kernels": 1,
        "dynamic": 0,
        "simulated": 0,
        "float": [{"name": "fc", "reason": "why"}],
    }
    assert to_dict(counts) == expected
    full = replace(counts, integer_kernels=2)
    audit = Audit(linears=counts, patch_embedding=full, attention_products=full, other_products=full)
    described = to_dict(audit)
    assert described["linears"] == expected
    assert described["audit_passed"] is False
    assert to_dict(replace(audit, linears=full))["audit_passed"] is True


def test_parts_have_what_was_measured_and_their_own_figures() -> None:
    plain = Part(part="mlp.fc1.input", accepted=False, before=30.0, after=29.25)
    assert to_dict(plain) == {"part": "mlp.fc1.input", "accepted": False, "before": 30.0, "after": 29.25}
    branch = Part(part="fc1", figures={"rank": 4, "bytes": 128})
    assert to_dict(branch) == {"part": "fc1", "rank": 4, "bytes": 128}
    step = StepRecord(name="branches", accepted=True, before=None, after=None, kept=1, layers=1, parts=(branch,))
    assert list(to_dict(step)) == [
        *("name", "accepted", "before", "after", "kept", "layers", "parts", "agreement", "seconds"),
    ]


def test_sections_are_told_by_what_they_hold(report: Report) -> None:
    sensitivity = SensitivityReport(output="logits", outputs=1, samples=8, parts=())
    comparison = OutputComparison(
        output="logits", samples=4, sqnr_db=30.0, cosine=0.5, top1_agreement=None, optimised_vs_plain=0.25
    )
    sections = (Section(key="sensitivity", content=sensitivity), Section(key="mine", content=comparison))
    assert section(sections, SensitivityReport) is sensitivity
    assert section((), SensitivityReport) is None
    assert other_sections(sections) == {"mine": comparison}
    described = replace(report, sections=other_sections(sections)).to_dict()
    assert described["mine"] == {
        "output": "logits",
        "samples": 4,
        "sqnr_db": 30.0,
        "cosine": 0.5,
        "top1_agreement": None,
        "optimised_vs_plain": 0.25,
    }


def test_threads_of_the_environment() -> None:
    assert environment(0).threads == "all"
    assert environment(3).threads == 3
