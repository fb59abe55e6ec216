"""Statistics that follow a change are those that a sweep of the changed graph measures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.calibration import measure
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.calibration.measure import Measurer
from onnxvitq.calibration.propagate import Change
from onnxvitq.calibration.sweep import Sampling, sweep
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import ChannelScaling, Layers
from onnxvitq.core.statistics import FIELDS, Statistics, StatisticsRequest
from onnxvitq.core.tensors import InputSpec
from onnxvitq.data.source import open_source
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.channel_scaling.choose import scaling_requests
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings
from onnxvitq.fit.steps.late_softmax.rewrite import divide_late
from onnxvitq.fit.steps.ranges import range_requests
from onnxvitq.fit.steps.scale_search import search_requests

SAMPLES = 20
TOKENS = InputSpec(name="tokens", dtype="float32", shape=(None, 9, 32))
RNG = np.random.default_rng(5)


def moving(kind: str, source: str, *readers: str, channels: int = 32, shifted: bool = True) -> ChannelScaling:
    shift = RNG.normal(size=channels).astype(np.float32) * shifted
    scale = np.exp(RNG.normal(size=channels)).astype(np.float32)
    return ChannelScaling(kind=kind, source=source, readers=readers, shift=shift, scale=scale, gain_db=1.0)  # type: ignore[arg-type]


NORM = moving("norm", "b0_norm1", "b0_q", "b0_k", "b0_v")
VALUE = moving("value", "b0_v", "b0_proj")
SCORES = moving("scores", "b1_q", "b1_k")
ONLINE = moving("online", "b0_gelu", "b0_fc2", channels=64, shifted=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = seeded_transformer(0, tokens="9")
    return build_case(model, correlated(0, SAMPLES), tmp_path_factory.mktemp("measure"), bits=8, attention="int8")


def requests(layers: Layers) -> tuple[StatisticsRequest, ...]:
    """What a fit asks for."""
    plan = make_plan(layers.blockmap, QuantConfig(attention="int8"))
    needs = (*range_requests(layers, plan), *search_requests(layers, plan))
    return tuple(dict.fromkeys((*scaling_requests(layers.blockmap), *needs)))


class Counted:
    """How many samples each sweep ran, and what kinds of statistics it was asked for."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, change: Callable[[Statistics], Statistics] = lambda stats: stats
    ) -> None:
        self.runs: list[int] = []
        self.kinds: list[set[str]] = []

        def counted(
            model: Path, feeds: CalibrationDataset, wanted: Sequence[StatisticsRequest], *args: Any, **options: Any
        ) -> Statistics:
            stats = sweep(model, feeds, wanted, *args, **options)
            self.runs.append(stats.count)
            self.kinds.append({request.kind for request in wanted})
            return change(stats)

        monkeypatch.setattr(measure, "sweep", counted)


def followed(case: Case, maps: Sequence[ChannelScaling], late: Sequence[str]) -> tuple[Statistics, Statistics]:
    """What follows from the graph before, and a sweep of the graph after."""
    samples = np.concatenate([one["tokens"] for one in case.feeds])
    feeds = CalibrationDataset(open_source({"tokens": samples}, (TOKENS,), None), again=True)
    measurer = Measurer(model="m", feeds=feeds, threads=1, progress=lambda done, count: None)
    before, sampling = case.layers.blockmap, Sampling(seed=0)
    graph = divide_late(apply_scalings(case.graph, before, maps), before, late)
    after = find_blocks(graph, "the changed graph")
    stats = measurer.measure(case.graph, requests(case.layers), sampling, SAMPLES)
    wanted = requests(replace(case.layers, blockmap=after))
    change = Change(scalings=maps, late=late)
    found = measurer.measure_changed((case.graph, graph), (before, after), change, stats, (wanted, sampling))
    return found, measurer.measure(graph, wanted, sampling, SAMPLES)


def assert_alike(found: Statistics, measured: Statistics) -> None:
    """To the rounding of float32 sums: values are of size 1 to 10."""
    assert found.count == measured.count
    for kind, name in FIELDS.items():
        ours, theirs = getattr(found, name), getattr(measured, name)
        assert ours.keys() == theirs.keys(), kind
        for tensor, value in theirs.items():
            if kind == "range" and tensor.endswith("powers"):
                assert ours[tensor] == (0.0, 1.0)  # the quantizer holds 0 anyway
                assert 0 < value[0] < value[1] == 1.0
                continue
            np.testing.assert_allclose(ours[tensor], value, rtol=2e-5, atol=2e-5, err_msg=f"{kind} of {tensor}")


@pytest.mark.parametrize(
    ("maps", "late", "runs", "kinds"),
    [
        ([], ["b0_probs"], 0, set()),
        ([NORM], [], 0, set()),
        ([ONLINE], [], 0, set()),
        ([VALUE], [], 6, {"right"}),
        ([SCORES], [], 6, {"left", "right"}),
        ([NORM, VALUE, SCORES, ONLINE], ["b0_probs", "b1_probs"], 6, {"left", "right"}),
    ],
    ids=["late", "norm", "online", "value", "scores", "all"],
)
def test_they_follow_from_those_before_and_few_samples(
    case: Case, monkeypatch: pytest.MonkeyPatch, maps: list[ChannelScaling], late: list[str], runs: int, kinds: set[str]
) -> None:
    late = [one.name for one in case.layers.blockmap.attentions if one.probs in late]
    counted = Counted(monkeypatch)
    found, measured = followed(case, maps, late)
    assert counted.runs == [SAMPLES, *[runs] * bool(runs), SAMPLES]
    assert counted.kinds[1:-1] == [kinds] * bool(runs)
    assert_alike(found, measured)


def test_a_wrong_one_is_seen(case: Case) -> None:
    found, measured = followed(case, [NORM], [])
    tensor = "b0_norm1"
    wrong = replace(found, rows={**found.rows, tensor: found.rows[tensor] * 1.001})
    with pytest.raises(AssertionError, match="rows of b0_norm1"):
        assert_alike(wrong, measured)


def test_an_operand_that_had_another_range_than_the_linears_output_is_measured(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something came in on its way, or was cut off."""

    def narrower(stats: Statistics) -> Statistics:
        return replace(stats, ranges={name: (low / 2, high / 2) for name, (low, high) in stats.ranges.items()})

    counted = Counted(monkeypatch, narrower)
    followed(case, [VALUE], [])
    assert counted.runs == [SAMPLES] * 3
