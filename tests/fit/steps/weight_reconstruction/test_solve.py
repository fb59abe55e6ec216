"""Weights solved again: never worse on held-out rows, against what a layer really reads, the same on any machine."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitted_cases import Case, build_case, correlated, linear_of, seeded_transformer
from textgraph import model_of

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.calibration.subgraphs import SubgraphRunner
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.step import LayerGain
from onnxvitq.fit.steps.bias import correct_biases
from onnxvitq.fit.steps.weight_reconstruction import rows, side_by_side, solve
from onnxvitq.fit.steps.weight_reconstruction.reconstruct import reconstruct_weights
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import SideBySide
from onnxvitq.fit.steps.weight_reconstruction.solve import LayerSolver, WeightReconstruction
from onnxvitq.numerics import affine
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.fit import times

TransformerCase = Callable[..., Case]
BIAS_ONLY = WeightReconstruction(ridge=False, feedback=False, threads=1)


def reconstructed(case: Case, options: WeightReconstruction | None = None) -> tuple[QuantPlan, LayerGain]:
    folder = case.folder / "scratch"
    folder.mkdir(exist_ok=True)
    result = reconstruct_weights(
        case.graph, case.layers, case.plan, case.feeds, folder, options or WeightReconstruction(threads=1)
    )
    assert [path for path in folder.rglob("*") if path.suffix == ".onnx"] == []
    return result


def layer(case: Case, plan: QuantPlan, name: str, x: FloatArray) -> FloatArray:
    """What a linear layer puts out as the plan writes it."""
    linear = linear_of(case, name)
    weight, bias = (case.layers.weight(name), case.layers.bias(name))
    inputs, quantized = plan.params(linear.input), plan.params(linear.weight)
    assert inputs is not None
    assert quantized is not None
    weight = fake_quantize(plan.weights.get(name, weight), quantized)
    return times(fake_quantize(x, inputs), weight) + plan.biases.get(name, bias)


# ------------------------------------------------------------------------------------- one layer, all of it in sight

ONE = (
    "(float[N,T,32] tokens) => (float[A,B,C] y) <float[32,32] Wq, float[32,32] Wk, float[32,32] Wv, float[32,16] W>"
    "{ q = MatMul(tokens, Wq) k = MatMul(tokens, Wk) v = MatMul(tokens, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " s = MatMul(q, kt) p = Softmax<axis = -1>(s) c = MatMul(p, v) n = Tanh(tokens) o = MatMul(n, W)"
    " z = ReduceMean<axes = [2]>(c) y = Add(o, z) }"
)


@pytest.fixture
def one(case_of: Callable[..., Case]) -> Case:
    """A graph whose layer ``o`` reads tanh of the input and nothing else that is quantized."""
    return case_of(model_of(ONE), correlated(0, 32), exclude=("q", "k", "v"))


def held_out_error(case: Case, plan: QuantPlan, name: str) -> float:
    inputs = [np.tanh(feed["tokens"]) for index, feed in enumerate(case.feeds) if is_held_out(index)]
    references = [times(x, case.layers.weight(name)) + case.layers.bias(name) for x in inputs]
    pairs = zip(inputs, references, strict=True)
    return float(sum(((layer(case, plan, name, x) - reference) ** 2).sum() for x, reference in pairs))


def test_a_layer_with_correlated_inputs_gains(one: Case) -> None:
    plan, gain = reconstructed(one)
    assert set(plan.weights) == {"o"}
    before, after = held_out_error(one, one.plan, "o"), held_out_error(one, plan, "o")
    assert after < before / 2  # 3 dB, of 5 seen: rounding errs in every direction, the inputs have eight
    assert (gain.kept, gain.layers) == (1, 1)
    assert gain.before is not None
    assert gain.after is not None
    expected = 10 * np.log10(before / after)
    assert gain.after - gain.before == pytest.approx(expected, abs=0.01)  # the report's figures are those of the layer


@pytest.mark.parametrize(("ridge", "feedback"), [(True, False), (False, True)])
def test_ridge_and_feedback_each_gain_alone_and_together_most(one: Case, *, ridge: bool, feedback: bool) -> None:
    nothing, alone, both = (
        held_out_error(one, reconstructed(one, options)[0], "o")
        for options in (
            BIAS_ONLY,
            WeightReconstruction(ridge=ridge, feedback=feedback, threads=1),
            WeightReconstruction(threads=1),
        )
    )
    assert both <= alone < nothing


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("samples", [1, 2, 4, 5])
def test_no_layer_gets_worse_on_what_judges_it(case_of: Callable[..., Case], samples: int, bits: int) -> None:
    case = case_of(model_of(ONE), correlated(3, samples), bits=bits, exclude=("q", "k", "v"))
    if samples < 4:  # none is held out: those fitted to judge
        case = replace(case, feeds=case.feeds * 4)
    plan, gain = reconstructed(case)
    assert held_out_error(case, plan, "o") <= held_out_error(case, case.plan, "o") * (1 + 1e-6)  # sums of float32
    assert gain.after is not None
    assert gain.before is not None
    assert gain.after >= gain.before


def test_a_layer_that_is_exact_already_is_left_alone(case_of: Callable[..., Case]) -> None:
    weight = np.random.default_rng(0).integers(-7, 8, (32, 16)).astype(np.float32)
    weight[0] = 7  # every channel's scale is one
    model = model_of(ONE.replace("n = Tanh(tokens)", "n = Sign(tokens)"), weights={"W": weight})
    case = case_of(model, correlated(0, 8), exclude=("q", "k", "v"))
    inputs = case.plan.params("n")
    assert inputs is not None
    case = replace(
        case,
        plan=case.plan.with_params({"n": replace(inputs, scale=np.array(2**-6, np.float32), zero_point=np.array(64))}),
    )
    plan, gain = reconstructed(case)
    assert (gain.kept, gain.layers) == (0, 1)
    assert np.array_equal(plan.weights["o"], weight)
    assert plan.biases["o"].tolist() == [0.0] * 16


def test_infinite_strength_is_bias_correction(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "STRENGTHS", (float("inf"),))
    for grid in ("WEIGHT_GRID", "FEW_BITS_GRID"):
        monkeypatch.setattr(affine, grid, (1.0,))
    monkeypatch.setattr(rows, "FEW_ROWS", 10**6)  # the same rows for both
    plan, _ = reconstructed(one, WeightReconstruction(feedback=False, threads=1))
    assert np.array_equal(plan.weights["o"], one.layers.weight("o"))
    assert np.array_equal(plan.params("W").scale, one.plan.params("W").scale)  # type: ignore[union-attr]
    corrected, _ = correct_biases(one.layers, one.plan, one.stats, workers=1)
    assert plan.biases["o"] == pytest.approx(corrected.biases["o"], abs=1e-5)  # float32 against float64 means
    assert np.abs(plan.biases["o"]).max() > 1e-3  # and there is something to correct


def test_the_old_bias_is_what_is_judged_before(one: Case) -> None:
    corrected = correct_biases(one.layers, one.plan, one.stats, workers=1)[0]
    _, plain = reconstructed(one, BIAS_ONLY)
    _, better = reconstructed(replace(one, plan=corrected), BIAS_ONLY)
    assert plain.before is not None
    assert better.before is not None
    assert better.before > plain.before
    assert better.after == plain.after


# ----------------------------------------------------------------------------------------------- layer after layer


class OnFloatInputs(SubgraphRunner):
    """A quantized network without errors: every layer passes on what the float layer would."""

    case: Case

    def compute(self, linear: Any, apply: Callable[[FloatArray], FloatArray]) -> None:
        weight, bias = self.case.layers.weight(linear.name), self.case.layers.bias(linear.name)
        super().compute(linear, lambda x: times(x, weight) + bias)


def test_in_sequence_beats_each_layer_against_float_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = []
    for seed in range(5):
        case = build_case(seeded_transformer(seed), correlated(seed, 32), tmp_path)
        fresh = correlated(1000 + seed, 16)
        sequence = reconstructed(case)[0]
        with monkeypatch.context() as patch:
            patch.setattr(OnFloatInputs, "case", case, raising=False)
            patch.setattr(side_by_side, "SubgraphRunner", OnFloatInputs)
            alone = reconstructed(case)[0]
        before, after, other = (case.sqnr(plan, fresh) for plan in (case.plan, sequence, alone))
        gains.append((after - before, after - other))
    assert np.mean(gains, axis=0)[0] > 4  # dB, of 6 to 9 seen
    assert np.mean(gains, axis=0)[1] > 0.3  # of 1 seen


def test_a_layer_makes_up_for_the_errors_of_those_before_it(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=16)
    # All but the first layer of an MLP are exact; its second then has an error to make up for.
    kept = ("b1_fc1", "b1_fc2")
    names = {linear.weight: linear.name for linear in case.layers.blockmap.linears}
    decisions = {
        name: decision
        for name, decision in case.plan.decisions.items()
        if any(node in kept for node, _ in decision.site.consumers)
    }
    assert names["b1_fc1_W"] == "b1_fc1"
    case = replace(case, plan=replace(case.plan, decisions=decisions))
    plan, _ = reconstructed(case)
    assert set(plan.weights) == set(kept)
    first_alone = replace(plan, weights={"b1_fc1": plan.weights["b1_fc1"]}, biases={"b1_fc1": plan.biases["b1_fc1"]})
    fc2 = linear_of(case, "b1_fc2").weight
    old = case.plan.params(fc2)
    assert old is not None
    first_alone = first_alone.with_params({fc2: old})
    fresh = correlated(50, 16)
    assert case.sqnr(plan, fresh) > case.sqnr(first_alone, fresh)


def test_layers_that_are_planned_float_are_left_alone(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=8, exclude=("block0.*", "head"))
    plan, gain = reconstructed(case)
    assert all(name.startswith("b1_") for name in (*plan.weights, *plan.biases))
    assert gain.layers == len(plan.weights) == 6
    assert plan.kept_float == case.plan.kept_float
    assert {name for name in plan.decisions if plan.params(name) is None} == set()


def test_with_nothing_planned_nothing_is_said(transformer_case: TransformerCase) -> None:
    plan, gain = reconstructed(transformer_case(samples=2, exclude=("*",)))
    assert (plan.weights, plan.biases) == ({}, {})
    assert (gain.before, gain.after, gain.layers, gain.kept) == (None, None, 0, 0)


def test_input_formats_stay(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=8, attention="int8")
    plan, _ = reconstructed(case)
    for name, decision in case.plan.decisions.items():
        if decision.site.kind == "activation":
            assert plan.params(name) is decision.params


def test_a_weight_that_two_layers_share_keeps_one_scale(case_of: Callable[..., Case]) -> None:
    text = ONE.replace(
        "n = Tanh(tokens) o = MatMul(n, W)", "n = Tanh(tokens) w = MatMul(n, V) m = Sin(w) o1 = MatMul(w, W)"
    )
    text = text.replace("float[32,16] W>", "float[32,32] V, float[32,16] W>").replace(
        "y = Add(o, z)", "o2 = MatMul(m, W) o = Add(o1, o2) y = Add(o, z)"
    )
    case = case_of(model_of(text), correlated(0, 16), exclude=("q", "k", "v", "w"))
    plan, _ = reconstructed(case)
    params = plan.params("W")
    assert params is not None
    assert set(plan.weights) == {"o1", "o2"}
    for name in plan.weights:  # what was chosen is what is written
        assert fake_quantize(plan.weights[name], params) == pytest.approx(plan.weights[name], abs=1e-6)


# ------------------------------------------------------------------------------------------------- the residual stream


def stream_error(case: Case, plan: QuantPlan, tensor: str) -> float:
    """Mean square error of a tensor with the plan's layers, on the calibration samples, by numpy and onnxruntime."""
    linears = case.layers.blockmap.linears
    values = []
    for index, quantized in enumerate((False, True)):
        runner = SubgraphRunner(case.graph, linears, case.feeds, case.folder / f"stream{index}", threads=1)
        for linear in linears:
            if runner.can_reach(tensor):
                break
            runner.reach([linear.input])
            weight, bias = case.layers.weight(linear.name), case.layers.bias(linear.name)
            planned = quantized and plan.params(linear.input) is not None
            runner.compute(
                linear,
                (lambda x, name=linear.name: layer(case, plan, name, x))  # type: ignore[misc]
                if planned
                else (lambda x, weight=weight, bias=bias: times(x, weight) + bias),  # type: ignore[misc]
            )
        runner.reach([tensor])
        values.append(np.stack([runner.values.get(tensor, sample) for sample in range(runner.samples)]))
    return float(np.mean((values[0] - values[1]) ** 2))


def test_a_layer_that_writes_the_stream_repairs_the_stream(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=32)
    with_stream, without = (
        reconstructed(case, WeightReconstruction(stream=stream, threads=1))[0] for stream in (True, False)
    )
    assert stream_error(case, with_stream, "b1_end") < stream_error(case, without, "b1_end")


def test_the_stream_is_the_target_of_the_layers_that_write_it_alone(
    transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, str] = {}
    solved: list[str] = []
    original = LayerSolver.solve

    def noted(self: Any, networks: SideBySide, streams: Mapping[str, str]) -> Any:
        solved.extend(linear.name for linear in self.linears)
        found.update(streams)
        return original(self, networks, streams)

    monkeypatch.setattr(LayerSolver, "solve", noted)
    reconstructed(transformer_case(samples=4))
    assert found == {
        "b0_proj": "tokens",
        "b0_fc2": "b0_mid",
        "b1_proj": "b0_end",
        "b1_fc2": "b1_mid",
    }
    assert len(solved) == 13


# ----------------------------------------------------------------------------------------------------- token weights


def token_errors(case: Case, plan: QuantPlan) -> FloatArray:
    """Mean square error of layer ``o`` at each token."""
    errors = []
    for feed in case.feeds:
        x = np.tanh(feed["tokens"])
        errors.append((layer(case, plan, "o", x) - times(x, case.layers.weight("o"))) ** 2)
    return np.mean(errors, axis=(0, 1, 3))


def test_a_heavier_token_has_the_smaller_error(case_of: Callable[..., Case]) -> None:
    feeds = correlated(0, 32)
    rng = np.random.default_rng(5)
    for feed in feeds:  # the first token is of another kind
        feed["tokens"][:, 0] = (rng.normal(size=32) * np.linspace(0.1, 2, 32)).astype(np.float32)
    case = case_of(model_of(ONE), feeds, exclude=("q", "k", "v"), bits=3)
    positions = np.ones(9, np.float32)
    positions[0] = 64
    alike, weighted = (
        token_errors(case, reconstructed(case, WeightReconstruction(positions=given, threads=1))[0])
        for given in (None, positions)
    )
    assert weighted[0] < 0.9 * alike[0]
    assert weighted[1:].mean() > alike[1:].mean()  # nothing is free


def test_equal_weights_are_no_weights(one: Case) -> None:
    plain, weighted = (
        reconstructed(one, WeightReconstruction(positions=given, threads=1))[0]
        for given in (None, np.full(9, 1, np.float32))
    )
    assert np.array_equal(plain.weights["o"], weighted.weights["o"])


def test_weights_of_another_number_of_tokens_are_not_used(one: Case) -> None:
    other = np.linspace(1, 64, 8, dtype=np.float32)
    plain, weighted = (
        reconstructed(one, WeightReconstruction(positions=given, threads=1))[0] for given in (None, other)
    )
    assert np.array_equal(plain.weights["o"], weighted.weights["o"])


# ------------------------------------------------------------------------------------------------------ the same again


def arrays(plan: QuantPlan) -> Mapping[str, bytes]:
    scales = {name: plan.params(name) for name in plan.decisions}
    return {
        **{f"weight {name}": value.tobytes() for name, value in plan.weights.items()},
        **{f"bias {name}": value.tobytes() for name, value in plan.biases.items()},
        **{f"scale {name}": params.scale.tobytes() for name, params in scales.items() if params is not None},
    }


def test_the_same_again_on_any_number_of_threads(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=8, attention="int8")
    first, again, two, four = (
        arrays(reconstructed(case, WeightReconstruction(threads=threads))[0]) for threads in (1, 1, 2, 4)
    )
    assert first == again
    assert first == two
    assert first == four


def test_stored_tensors_may_lie_in_files(
    transformer_case: TransformerCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = transformer_case(samples=5)
    first = arrays(reconstructed(case)[0])
    monkeypatch.setattr("onnxvitq.calibration.subgraphs.TensorStore.__init__.__defaults__", (0,))
    assert arrays(reconstructed(case)[0]) == first


def test_neither_graph_nor_plan_is_changed(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=4)
    before = arrays(case.plan)
    names = [node.name for node in case.graph.nodes]
    reconstructed(case)
    assert arrays(case.plan) == before
    assert [node.name for node in case.graph.nodes] == names
    assert case.plan.weights == {}


# ------------------------------------------------------------------------------------------- inputs of run-time ranges


@pytest.mark.parametrize("form", ["dynamic", "per_token"])
def test_a_layer_is_solved_against_what_it_reads_at_run_time(one: Case, form: str) -> None:
    """The input's calibrated range is spoilt: only who looks at the run-time range can say how good the layer is."""
    params = one.plan.params("n")
    assert params is not None
    spoilt = one.plan.with_params({"n": replace(params, scale=params.scale * 50)})
    names = frozenset({"n"})
    plan = replace(spoilt, dynamic=names, per_token=names if form == "per_token" else frozenset())
    static, _ = reconstructed(replace(one, plan=one.plan))
    results = {name: reconstructed(replace(one, plan=each)) for name, each in (("spoilt", spoilt), (form, plan))}
    after = {name: gain.after or 0.0 for name, (_, gain) in results.items()}
    assert after[form] > after["spoilt"] + 5  # 9 seen; the weights have 4 bits
    assert not np.array_equal(results[form][0].weights["o"], static.weights["o"])
    assert one.sqnr(results[form][0], one.feeds) > one.sqnr(plan, one.feeds)  # as written and run
