"""One session for many plans: its figures are the judge's, whatever order the plans come in."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer, with_bits

from onnxvitq.core.errors import OutputError
from onnxvitq.core.plan import only
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.probe import OutputProbe, ProbeOptions, Samples
from onnxvitq.fit.steps.ranges import fit_ranges
from onnxvitq.graph import scratch
from onnxvitq.graph.writing import save_for_session, to_proto
from onnxvitq.runtime.session import Session

Made = tuple[Case, Samples]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("case")
    case = build_case(seeded_transformer(0, depth=1), correlated(0, 6), folder, bits=4, attention="int8")
    path = folder / "float.onnx"
    save_for_session(to_proto(case.graph.copy(), {}), path)
    session = Session(path, threads=1)
    return case, Samples(feeds=case.feeds, references=[session.run(feed)[0] for feed in case.feeds])


def test_the_figures_are_the_judges(made: Made) -> None:
    case, samples = made
    probe = OutputProbe(case.graph, case.layers, case.plan, samples, 1)
    judge = OutputEvaluator(
        graph=case.graph, layers=case.layers, feeds=samples.feeds, references=samples.references, threads=1
    )
    fitted = [fit_ranges(case.layers, with_bits(case.plan, bits), case.stats) for bits in (8, 3, 6)]
    figures = [probe(plan).sqnr_db for plan in fitted]
    assert figures[0] > figures[2] > figures[1]
    # A sum's rounding may move a code by one.
    assert figures == pytest.approx([judge(plan) for plan in fitted], abs=0.1)


def test_nothing_quantized_is_the_float_model_and_samples_can_be_fewer(made: Made) -> None:
    case, samples = made
    probe = OutputProbe(case.graph, case.layers, case.plan, samples, 1)
    assert probe(only(case.plan, ())).sqnr_db > 110  # a sum in another order
    assert probe(case.plan, 2).agreement is not None
    assert probe.runs == len(samples.feeds) + 2


def test_stages_give_the_figures_of_the_whole_and_run_less(made: Made) -> None:
    case, samples = made
    nothing = only(case.plan, ())
    linears = [linear for linear in case.layers.blockmap.linears if linear.weight in case.plan.decisions]
    watched = linears[-2].output
    whole = OutputProbe(case.graph, case.layers, nothing, samples, 1, ProbeOptions(watched=(watched,)))
    parts = OutputProbe(case.graph, case.layers, nothing, samples, 1, ProbeOptions(watched=(watched,), subgraphs=3))
    parts(nothing)
    assert len(parts.shares) == 3
    assert parts.runs == pytest.approx(len(samples.feeds))
    places = [parts.places([linear.name])[0] for linear in linears]
    assert places == sorted(places)
    assert places[-1] == 2
    assert parts.places([linear.name for linear in linears]) == (0, 2)
    for linear, place in zip(linears, places, strict=True):
        plan, before = only(case.plan, {linear.weight}), parts.runs
        assert parts(plan).sqnr_db == pytest.approx(whole(plan).sqnr_db, abs=0.01)
        assert parts.runs - before == pytest.approx(sum(parts.shares[place:]) * len(samples.feeds))
        (power,) = parts.propagated(plan, [2], len(samples.feeds))
        assert -10 * np.log10(power) == pytest.approx(whole(plan).sqnr_db, abs=0.01)
        (value,), (expected,) = (one.watch(plan, [watched], 2) for one in (parts, whole))
        np.testing.assert_allclose(value, expected, atol=1e-5)
    assert np.array_equal(parts.outputs(nothing, samples.feeds), whole.outputs(nothing, samples.feeds))


def test_what_is_carried_a_part_on_runs_no_further(made: Made) -> None:
    case, samples = made
    probe = OutputProbe(case.graph, case.layers, only(case.plan, ()), samples, 1, ProbeOptions(subgraphs=3))
    plan = only(case.plan, {case.layers.blockmap.linears[0].weight})
    probe.propagated(plan, [0], 2)
    before = probe.runs
    assert probe.propagated(plan, [0], 2)[0] > 0
    assert probe.runs - before == pytest.approx(2 * probe.shares[0])
    assert probe.propagated(only(case.plan, ()), [0, 2], 2) == [0, 0]


def test_a_full_disk_is_said(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(proto: onnx.ModelProto, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "save_for_session", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    case, samples = made
    with pytest.raises(OutputError, match="temporary files cannot be written: No space left on device"):
        OutputProbe(case.graph, case.layers, case.plan, samples, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_is_left_as_it_was(made: Made) -> None:
    case, samples = made
    before = [(node.name, [tensor.name for tensor in node.inputs]) for node in case.graph.nodes]
    OutputProbe(case.graph, case.layers, case.plan, samples, 1)
    assert isinstance(case.graph, gs.Graph)
    assert [(node.name, [tensor.name for tensor in node.inputs]) for node in case.graph.nodes] == before
    assert all(np.isfinite(reference).all() for reference in samples.references)
