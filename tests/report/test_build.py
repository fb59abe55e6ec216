"""The report's keys, its JSON, and its table."""

import copy
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from onnxvitq.api import Result
from onnxvitq.evaluation.compare import Comparison
from onnxvitq.report import build as reports
from onnxvitq.targets.ort_cpu.kernels import Audit, Count


def text_of(report: dict[str, Any], width: int = 200) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, emoji=False, highlight=False).print(reports.summary(report))
    return file.getvalue()


@pytest.fixture
def report(quantized: Result) -> dict[str, Any]:
    return copy.deepcopy(dict(quantized.report))


def test_every_documented_key_is_there(report: dict[str, Any]) -> None:
    assert (report["blocks"], report["attention"]) == (2, 2)
    assert report["linears"] == {"found": 13, "quantized": 13, "integer_kernels": 13, "dynamic": 0, "float": []}
    assert (report["unmatched"], report["products"]) == ([], [])
    assert report["other_products"] == {"found": 0, "quantized": 0, "integer_kernels": 0, "dynamic": 0, "float": []}
    assert set(report["compare"]) == {"samples", "sqnr_db", "cosine", "top1_agreement", "optimised_vs_plain"}
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


def test_values_are_of_their_units(report: dict[str, Any]) -> None:
    assert 0 <= report["compare"]["top1_agreement"] <= 1
    assert 0.99 < report["compare"]["cosine"] <= 1
    assert 0 < report["size_mb"]["quantized"] < report["size_mb"]["float"] < 1  # megabytes
    stages = [value for name, value in report["seconds"].items() if name != "total"]
    assert sum(stages) <= report["seconds"]["total"] + 0.001 * len(stages)  # each rounded to a millisecond
    steps = [step["seconds"] for step in report["steps"]]
    assert min(steps) > 0
    assert sum(steps) <= report["seconds"]["fit"] + 0.001 * len(steps)


def test_json_round_trips(report: dict[str, Any]) -> None:
    text = reports.to_json(report)
    assert text.endswith("}\n")
    assert json.loads(text) == report
    assert list(json.loads(text)) == list(report)


def test_json_refuses_what_json_does_not_have(report: dict[str, Any]) -> None:
    report["compare"]["sqnr_db"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.to_json(report)


def test_the_audit_is_described_with_its_reasons() -> None:
    short, full = (Count(found=3, quantized=2, integer_kernels=kernels, float=(("fc", "why"),)) for kernels in (1, 2))
    audit = Audit(linears=short, patch_embeddings=full, attention_products=full, other_products=full)
    described = reports.describe_audit(audit)
    expected = {
        "found": 3,
        "quantized": 2,
        "integer_kernels": 1,
        "dynamic": 0,
        "float": [{"name": "fc", "reason": "why"}],
    }
    assert described["linears"] == expected
    assert described["attention_products"]["integer_kernels"] == 2
    assert described["other_products"] == {**expected, "integer_kernels": 2}
    assert described["audit_passed"] is False
    lost = replace(audit, linears=full, other_products=short)
    assert reports.describe_audit(lost)["audit_passed"] is False
    assert reports.describe_audit(replace(lost, other_products=full))["audit_passed"] is True


def test_the_comparison_is_described_by_its_figures() -> None:
    comparison = Comparison(samples=4, sqnr_db=30.0, cosine=0.5, top1_agreement=None, optimised_vs_plain=0.25)
    assert reports.describe_comparison(comparison) == {
        "samples": 4,
        "sqnr_db": 30.0,
        "cosine": 0.5,
        "top1_agreement": None,
        "optimised_vs_plain": 0.25,
    }


def test_threads_of_the_environment() -> None:
    assert reports.environment(0)["threads"] == "all"
    assert reports.environment(3)["threads"] == 3


def test_the_table_says_what_matters(report: dict[str, Any]) -> None:
    text = text_of(report)
    for part in ("13 found, 13 quantized, 13 on integer kernels", "4 found", "top-1 agreement", "MB ->", "step scales"):
        assert part in text
    assert f"SQNR {report['compare']['sqnr_db']} dB" in text
    assert report["output"] in text


def test_the_table_names_layers_in_float(report: dict[str, Any]) -> None:
    report["linears"]["float"] = [{"name": f"fc{i}", "reason": "excluded by '[a-z]*'"} for i in range(12)]
    report["attention_products"]["float"] = []  # this random model's may gain or lose by a hair
    report["unmatched"] = [{"name": "conv", "op": "Conv", "reason": "a convolution"}]
    text = text_of(report)
    assert "fc0: excluded by '[a-z]*'" in text
    assert "fc7" in text
    assert "fc8" not in text
    assert "and 5 more, named in the JSON report" in text


def test_the_table_names_unmatched_nodes(report: dict[str, Any]) -> None:
    report["unmatched"] = [{"name": "conv", "op": "Conv", "reason": "a convolution"}]
    assert "conv (Conv): a convolution" in text_of(report)
    assert "more, named" not in text_of(report)


def test_the_table_speaks_of_other_products_where_there_are_some(report: dict[str, Any]) -> None:
    assert "other products" not in text_of(report)
    reason = "as integers it costs 9.0 dB of the output's SQNR"
    report["other_products"] = {
        "found": 2,
        "quantized": 1,
        "integer_kernels": 1,
        "dynamic": 0,
        "float": [{"name": "gram", "reason": reason}],
    }
    text = text_of(report)
    assert "other products" in text
    assert "2 found, 1 quantized, 1 on integer kernels" in text
    assert f"gram: {reason}" in text


def test_the_table_without_classes(report: dict[str, Any]) -> None:
    report["compare"]["top1_agreement"] = None
    assert "agreement" not in text_of(report)


def test_a_narrow_terminal_cuts_nothing(report: dict[str, Any]) -> None:
    report["linears"]["float"] = [{"name": "/a/very/long/name/" * 4 + "MatMul", "reason": "why"}]
    text = text_of(report, width=60)
    assert "…" not in text
    assert "MatMul" in "".join(line.split("│")[-2].strip() for line in text.splitlines() if "│" in line)


def test_the_ablation_names_every_step_with_what_it_did(report: dict[str, Any]) -> None:
    steps = [
        {"name": "scales", "accepted": True, "before": 30.0, "after": 31.5, "agreement": 0.75, "seconds": 2.34, "parts": [
            {"part": "fc1.input", "accepted": False, "before": 30.0, "after": 29.25}]},
        {"name": "weights", "accepted": False, "before": 31.5, "after": None, "agreement": None, "seconds": 0.04,
         "parts": []},
    ]  # fmt: skip
    file = io.StringIO()
    Console(file=file, width=160).print(reports.ablation_table({**report, "steps": steps}))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in file.getvalue().splitlines() if "│" in line]
    assert lines == [
        ["scales", "", "yes", "30.00", "31.50", "1.50", "75.00", "2.3"],
        ["", "fc1.input", "no", "30.00", "29.25", "-0.75", "", ""],
        ["weights", "", "no", "31.50", "", "", "", "0.0"],
    ]
