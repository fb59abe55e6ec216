"""Mixed precision and quality control from a model to a file."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from fitted_cases import correlated, seeded_transformer

from onnxvitq.api import Result, quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.graph.writing import to_proto
from onnxvitq.precision import budget as budget_module
from onnxvitq.precision import written as written_module

FEEDS = [feed["tokens"] for feed in correlated(0, 16)]
QUICK: dict[str, Any] = {"threads": 1, "skip": ("channels", "online-channels", "softmax", "scales", "bias", "weights")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first block's MLP has weights of uneven size: it loses most with few bits."""
    proto = seeded_transformer(0, tokens="9")
    for tensor in proto.graph.initializer:
        if tensor.name == "b0_fc1_W":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[::8] *= 8
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = tmp_path_factory.mktemp("precision") / "model.onnx"
    onnx.save(proto, path)
    return path


def run(model: Path, folder: Path, **options: Any) -> Result:
    return quantize(model, FEEDS, folder / "out.onnx", QuantConfig(**{**QUICK, **options}))


def weight_bits(result: Result) -> dict[str, int]:
    decisions = result.plan.decisions.values()
    return {one.site.role: one.spec.bits for one in decisions if one.site.kind == "weight"}


@pytest.mark.parametrize("granularity", ["module", "layer"])
@pytest.mark.parametrize("criterion", ["measured", "nuclear"])
def test_the_mean_is_kept_and_the_front_reported(model: Path, tmp_path: Path, granularity: str, criterion: str) -> None:
    result = run(model, tmp_path, average_bits=4.0, granularity=granularity, criterion=criterion)
    precision = result.report.to_dict()["precision"]
    assert precision["chosen"]["average_bits"] <= 4
    assert len(set(precision["proposed"]["bits"].values())) > 1
    assert precision["chosen"] == precision["proposed" if precision["mixed"] else "uniform"]
    assert len(precision["chosen"]["bits"]) == (4 if granularity == "module" else 12)
    front = precision["front"]
    assert all(a["size_mb"] <= b["size_mb"] for a, b in itertools.pairwise(front))
    key = "predicted_db" if criterion == "measured" else "omega"
    assert any(point[key] == precision["proposed"][key] for point in front)
    measured = [point["measured_db"] for point in front if "measured_db" in point]
    assert len(measured) == 1  # of 16 samples, what is proposed
    bits = weight_bits(result)
    assert bits.pop("head.weight") == 8
    assert set(bits.values()) <= {2, 3, 4, 5, 6, 7, 8}


def test_more_samples_measure_more_of_the_front(model: Path, tmp_path: Path) -> None:
    feeds = [feed["tokens"] for feed in correlated(0, 256)]
    front = quantize(model, feeds, tmp_path / "out.onnx", QuantConfig(**QUICK, average_bits=4.0)).report.to_dict()[
        "precision"
    ]["front"]
    measured = [point["measured_db"] for point in front if "measured_db" in point]
    assert (
        4 <= len(measured) <= 6
    )  # four for 256 samples, what is proposed, and the same for all where it is on the front
    assert measured[-1] > measured[0] + 6


def test_measured_bits_beat_the_same_for_all(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The written models do, over all of 64 samples: those that judge a choice are a few."""
    monkeypatch.setattr(
        budget_module, "DB_A_BIT", 0.0
    )  # of so few weights, unpacking several widths takes more bits than it gains
    feeds = [feed["tokens"] for feed in correlated(0, 64)]
    settings: tuple[dict[str, Any], ...] = ({}, {"bit_candidates": ("5",)})
    reports = [
        quantize(
            model, feeds, tmp_path / "out.onnx", QuantConfig(**QUICK, average_bits=5.0, **options)
        ).report.to_dict()
        for options in settings
    ]
    mixed, uniform = (report["precision"]["chosen"] for report in reports)
    assert set(uniform["bits"].values()) == {5}
    assert mixed["average_bits"] <= 5
    assert mixed["predicted_db"] > uniform["predicted_db"] + 1
    assert reports[0]["compare"]["sqnr_db"] > reports[1]["compare"]["sqnr_db"] + 0.3


@pytest.mark.parametrize("mean", [3.0, 4.0, 5.0])
def test_what_unpacking_takes_has_to_be_gained(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mean: float
) -> None:
    """So few weights that the nodes that unpack another width may take as much as a bit of all of them."""
    uniform = run(model, tmp_path, bits=f"w{mean:.0f}a8").report.to_dict()["size_mb"]["quantized"]
    monkeypatch.setattr(budget_module, "WORTH_DB", -100.0)  # whatever is gained
    found = {}
    for price in (0.0, 1e6):
        monkeypatch.setattr(budget_module, "DB_A_BIT", price)
        result = run(model, tmp_path, average_bits=mean)
        found[price] = result.report.to_dict()["precision"]["mixed"], result.report.to_dict()["size_mb"]["quantized"]
    assert (found[0][0], found[1e6][0]) == (True, False)
    assert found[0][1] > found[1e6][1]  # of no more bits
    assert found[1e6][1] <= uniform + 2e-3  # 2 kB: what a file says of itself


def test_what_promises_too_little_is_the_same_for_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "WORTH_DB", 100.0)
    precision = run(model, tmp_path, average_bits=5.5).report.to_dict()["precision"]
    assert not precision["mixed"]
    assert set(precision["chosen"]["bits"].values()) == {5}
    assert set(precision["proposed"]["bits"].values()) != {5}


def test_a_size_is_met(model: Path, tmp_path: Path) -> None:
    smallest = run(model, tmp_path, bits="w2a8").report.to_dict()["size_mb"]["quantized"]
    largest = run(model, tmp_path).report.to_dict()["size_mb"]["quantized"]
    target = smallest + 0.7 * (largest - smallest)
    result = run(model, tmp_path, target_size=target)
    assert 0.75 * target < result.report.to_dict()["size_mb"]["quantized"] <= target  # 4 kB are kept free of 40
    assert result.report.to_dict()["precision"]["chosen"]["size_mb"] <= target


def test_a_budget_that_cannot_be_met_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target_size: expected at least .* MB"):
        run(model, tmp_path, target_size=0.001)
    with pytest.raises(ConfigError, match="average_bits: expected at least 4 bits, got 3"):
        run(model, tmp_path, average_bits=3.0, bit_candidates=("4", "8"))
    assert list(tmp_path.iterdir()) == []


def test_layers_may_stay_float(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path, average_bits=12.0, bit_candidates=("4", "float"))
    in_float = [name for name, bits in result.report.to_dict()["precision"]["chosen"]["bits"].items() if bits == 32]
    assert in_float
    assert len(result.report.to_dict()["linears"]["float"]) == len(in_float)
    assert result.report.to_dict()["audit_passed"]


@pytest.mark.parametrize("budget", [{"average_bits": 4.0}, {"max_drop": 0.5}])
def test_of_many_choices_the_chosen_one_alone_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, float]
) -> None:
    written: list[gs.Graph] = []

    def noting(graph: gs.Graph, metadata: Mapping[str, str]) -> onnx.ModelProto:
        written.append(graph)
        return to_proto(graph, metadata)

    monkeypatch.setattr(written_module, "to_proto", noting)
    monkeypatch.setattr(budget_module, "WORTH_DB", 100.0)
    run(model, tmp_path, bit_candidates=("2", "3", "4", "8"), **budget)
    assert len(written) == 1


def test_choosing_takes_less_than_three_passes(model: Path, tmp_path: Path) -> None:
    for granularity in ("module", "layer"):
        runs = run(model, tmp_path, average_bits=4.0, granularity=granularity).report.to_dict()["precision"]["runs"]
        assert runs < 3 * len(FEEDS)


def test_a_promise_that_holds_changes_nothing(model: Path, tmp_path: Path) -> None:
    with_promise = run(model, tmp_path, max_drop=0.9)
    quality = with_promise.report.to_dict()["quality"]
    assert quality["kept"]
    assert quality["changes"] == []
    low, high = quality["interval"]
    assert low <= quality["drop"] <= high


@pytest.mark.parametrize("limit", [0.02, 0.001])
def test_a_promise_is_kept_on_samples_that_nobody_saw(model: Path, tmp_path: Path, limit: float) -> None:
    from textgraph import run as run_model

    result = run(model, tmp_path, bits="w2a4", edges_at_8_bits=False, max_drop=limit)
    quality = result.report.to_dict()["quality"]
    assert quality["before"]["bound"] > limit
    assert quality["kept"]
    assert quality["expected"] <= quality["bound"] <= limit
    actions = [change["action"] for change in quality["changes"]]
    assert actions == sorted(actions, key=("raise", "float").index)
    assert actions
    assert quality["evaluations"] < 12
    assert result.report.to_dict()["audit_passed"]
    written, exact = onnx.load(result.output), onnx.load(model)
    feeds = correlated(5, 40)
    lost = sum(int(run_model(written, feed)[0].argmax() != run_model(exact, feed)[0].argmax()) for feed in feeds)
    assert lost / len(feeds) <= quality["interval"][1]


def test_a_stricter_promise_changes_more(model: Path, tmp_path: Path) -> None:
    reports = [run(model, tmp_path, bits="w3a8", max_drop=limit).report.to_dict()["quality"] for limit in (0.1, 0.003)]
    assert len(reports[0]["changes"]) < len(reports[1]["changes"])


def test_a_budget_is_kept_and_what_costs_no_byte_is_changed(model: Path, tmp_path: Path) -> None:
    plain = run(model, tmp_path, bits="w8a3", average_bits=2.5).report.to_dict()
    report = run(model, tmp_path, bits="w8a3", average_bits=2.5, max_drop=1e-6).report.to_dict()
    quality = report["quality"]
    assert not quality["kept"]
    assert quality["bound"] < quality["before"]["bound"]
    assert {change["action"] for change in quality["changes"]} == {"raise", "float"}
    assert report["bits"]["weights_mb"] == plain["bits"]["weights_mb"]
    assert report["precision"]["chosen"]["bits"] == plain["precision"]["chosen"]["bits"]


def test_few_bits_that_keep_a_promise(model: Path, tmp_path: Path) -> None:
    """The less may be lost, the more bits are needed; always fewer than 8, and no more than with the same for all."""
    means = []
    for limit in (0.4, 0.1):
        report = run(model, tmp_path, max_drop=limit, bit_candidates=("3", "4", "5", "6", "7", "8")).report.to_dict()
        precision = report["precision"]
        assert report["quality"]["kept"]
        assert precision["chosen"]["average_bits"] <= precision["uniform"]["average_bits"]
        means.append(precision["chosen"]["average_bits"])
    assert 3 <= means[0] < means[1] < 8


def test_no_choice_keeps_what_cannot_be_kept_and_the_rest_is_float(model: Path, tmp_path: Path) -> None:
    report = run(model, tmp_path, max_drop=1e-6, bit_candidates=("2", "3")).report.to_dict()
    assert set(report["precision"]["chosen"]["bits"].values()) == {3}
    assert report["quality"]["kept"]
    assert "float" in {change["action"] for change in report["quality"]["changes"]}


def test_features_have_no_decisions_to_lose(tmp_path: Path) -> None:
    from commandline import save_attention

    model = save_attention(tmp_path / "model.onnx")
    rows = np.random.default_rng(0).normal(size=(8, 1, 5, 8)).astype(np.float32)
    with pytest.raises(ConfigError, match="max_drop: expected class scores"):
        quantize(model, list(rows), tmp_path / "out.onnx", QuantConfig(**QUICK, max_drop=0.01))
    for criterion in ("measured", "nuclear"):
        config = QuantConfig(**QUICK, average_bits=4.0, criterion=criterion, sensitivity=True)
        report = quantize(model, list(rows), tmp_path / "out.onnx", config).report.to_dict()
        assert report["precision"]["chosen"]["measured_db"] > 0
        assert report["precision"]["chosen"]["average_bits"] <= 4
        parts = report["sensitivity"]["parts"]
        assert {part["agreement"] for part in parts} == {None}
        assert all(0 < part["sqnr_db"] <= 120 for part in parts)
        assert abs(sum(part["share"] for part in parts) - 1) < 1e-3
