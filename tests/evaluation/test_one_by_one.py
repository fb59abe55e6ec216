"""Changes one at a time: the figures of whole runs, fewer runs, and near them where an error is carried a part on only."""

from collections.abc import Sequence

import numpy as np
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer

from onnxvitq.core.plan import QuantPlan, only
from onnxvitq.evaluation.one_by_one import ENOUGH, OneByOne
from onnxvitq.evaluation.probe import OutputProbe, ProbeOptions, Samples
from onnxvitq.graph.writing import save_for_session, to_proto
from onnxvitq.numerics.decibels import error_power
from onnxvitq.runtime.session import Session


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Samples]:
    folder = tmp_path_factory.mktemp("case")
    case = build_case(seeded_transformer(0, depth=3), correlated(0, 6), folder, bits=4, attention="int8")
    path = folder / "float.onnx"
    save_for_session(to_proto(case.graph.copy(), {}), path)
    session = Session(path, threads=1)
    return case, Samples(feeds=case.feeds, references=[session.run(feed)[0] for feed in case.feeds])


class Changes:
    """The weights of each linear, quantized."""

    def __init__(self, case: Case, samples: Samples) -> None:
        self.case = case
        self.linears = [one for one in case.layers.blockmap.linears if one.weight in case.plan.decisions]
        options = ProbeOptions(subgraphs=6)
        self.probe = OutputProbe(case.graph, case.layers, only(case.plan, ()), samples, 1, options)

    def plan_of(self, numbers: Sequence[int]) -> QuantPlan:
        return only(self.case.plan, {self.linears[number].weight for number in numbers})

    def one_by_one(self, runs: float) -> OneByOne:
        return OneByOne(self.probe, [[one.name] for one in self.linears], runs, 6)


def test_with_runs_enough_it_is_the_outputs_error(made: tuple[Case, Samples]) -> None:
    changes = Changes(*made)
    whole = OutputProbe(made[0].graph, made[0].layers, only(made[0].plan, ()), made[1], 1)
    runs = 3.2 * len(changes.linears)
    found = changes.one_by_one(runs)
    assert 3 < found.count <= 6  # a change takes about half of the network
    powers = found.powers(changes.plan_of)
    assert changes.probe.runs <= runs
    expected = [error_power(whole(changes.plan_of([n]), found.count).sqnr_db) for n in range(len(changes.linears))]
    np.testing.assert_allclose(powers, expected, rtol=1e-2)


def test_with_fewer_errors_are_carried_less_far(made: tuple[Case, Samples]) -> None:
    changes = Changes(*made)
    each = ENOUGH * len(changes.linears)  # runs, if every change of every sample took the whole network
    exact = changes.one_by_one(0.7 * each)
    expected, before = exact.powers(changes.plan_of), changes.probe.runs
    few = changes.one_by_one(0.4 * each)
    assert exact.count == few.count == ENOUGH
    assert few.ahead < exact.ahead
    powers = few.powers(changes.plan_of)
    assert changes.probe.runs - before <= 0.4 * each
    assert powers.sum() == pytest.approx(expected.sum(), rel=0.5)
    late = [n for n, one in enumerate(changes.linears) if changes.probe.places([one.name])[1] == 5]
    np.testing.assert_allclose(powers[late], expected[late])  # they are carried to the end in any case


def test_more_samples_come_before_the_way(made: tuple[Case, Samples]) -> None:
    changes = Changes(*made)
    runs = 0.9 * len(changes.linears)  # one sample could be carried to the end
    found = changes.one_by_one(runs)
    assert (found.count, found.ahead) == (2, 0)
    found.powers(changes.plan_of)
    assert changes.probe.runs <= runs


def test_a_sample_is_measured_in_any_case(made: tuple[Case, Samples]) -> None:
    found = Changes(*made).one_by_one(0.1)
    assert (found.count, found.ahead) == (1, 0)
