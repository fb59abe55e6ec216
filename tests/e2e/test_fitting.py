"""The order of the steps, what is accepted, and graphs that only a run tells the shapes of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fitted_cases import correlated, seeded_transformer
from stream_text import embedded
from textgraph import model_of, run
from transformer_text import transformer

from onnxvitq.api import inspect, quantize
from onnxvitq.calibration.dataset import KEPT_FEEDS, CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.quantize_options import StepName
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.fit import state as fit_state
from onnxvitq.fit.acceptance import DOUBT_DB
from onnxvitq.fit.steps import outer_layers
from onnxvitq.fit.steps.weight_reconstruction import step as weights
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.shapes import unknown_tensors
from onnxvitq.runtime import canonical_form
from onnxvitq.runtime.canonical_form import bring_to_canonical_form

MAPS: list[StepName] = ["channels", "online-channels", "softmax"]
STEPS = ["minmax", *MAPS, "scales", "attention", "weights"]
FEEDS = [feed["tokens"] for feed in correlated(0, 12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fitting") / "model.onnx"
    onnx.save(seeded_transformer(0, tokens="9"), path)
    return path


@pytest.fixture(scope="module")
def outlying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two norm channels thirty times the others."""
    proto = seeded_transformer(0, tokens="9")
    for tensor in proto.graph.initializer:
        if tensor.name in ("b0_norm2_g", "b0_norm2_b", "b0_fc1_W"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[[3, 17]] *= 1 / 30 if tensor.name == "b0_fc1_W" else 30
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = tmp_path_factory.mktemp("outlying") / "model.onnx"
    onnx.save(proto, path)
    return path


def steps_of(model: Path, folder: Path, data: Any = FEEDS, **options: Any) -> dict[str, dict[str, Any]]:
    config = QuantConfig(candidates=3, rounds=1, threads=1, **options)
    report = quantize(model, data, folder / "out.onnx", config).report.to_dict()
    assert report["audit_passed"]
    return {step["name"]: step for step in report["steps"]}


def test_every_step_has_its_entry_in_order(model: Path, tmp_path: Path) -> None:
    steps = steps_of(model, tmp_path)
    assert list(steps) == STEPS
    for step in steps.values():
        assert {"name", "accepted", "before", "after", "agreement", "kept", "layers", "parts"} <= set(step)
    assert steps["weights"]["layers"] == 13


def test_the_baseline_runs_none_of_the_new_ones(model: Path, tmp_path: Path) -> None:
    assert list(steps_of(model, tmp_path, objective="minmax")) == ["minmax", "bias"]
    assert list(steps_of(model, tmp_path, objective="minmax", skip=("bias",))) == ["minmax"]


@pytest.mark.parametrize("missing", [tuple(MAPS), ("scales",)], ids=["maps", "scales"])
def test_each_can_be_switched_off_alone(model: Path, tmp_path: Path, missing: tuple[str, ...]) -> None:
    assert list(steps_of(model, tmp_path, skip=missing)) == [step for step in STEPS if step not in missing]


def test_biases_are_corrected_where_weights_are_not_solved_again(model: Path, tmp_path: Path) -> None:
    assert list(steps_of(model, tmp_path, skip=("weights",))) == [*STEPS[:-1], "bias"]
    assert list(steps_of(model, tmp_path, also=("bias",))) == [*STEPS[:-1], "bias", "weights"]


def test_what_is_accepted_gains_at_the_output_and_the_score_goes_on(outlying: Path, tmp_path: Path) -> None:
    steps = steps_of(outlying, tmp_path)
    channels = steps["channels"]
    assert channels["accepted"]
    assert channels["kept"] == channels["layers"] == len(channels["parts"])
    assert "norm b0_norm2" in [part["part"] for part in channels["parts"]]
    assert channels["after"] > channels["before"] + 1
    score = channels["before"]
    for name in STEPS[1:]:
        step = steps[name]
        assert step["before"] == pytest.approx(score, abs=0.01)  # rounded in some entries
        if step["accepted"]:
            assert step["after"] > step["before"] - DOUBT_DB
            score = step["after"]


def test_fast_tries_the_exact_changes_together(outlying: Path, tmp_path: Path) -> None:
    steps = steps_of(outlying, tmp_path, effort="fast")
    assert list(steps) == ["minmax", "channels+online-channels+softmax", "bias"]
    exact = steps["channels+online-channels+softmax"]
    assert exact["accepted"]
    assert exact["after"] > exact["before"] + 1
    assert {part["part"].split()[0] for part in exact["parts"]} >= {"norm", "value"}


def test_always_keeps_what_is_proposed(outlying: Path, tmp_path: Path) -> None:
    steps = steps_of(outlying, tmp_path, acceptance="always")
    assert list(steps) == [step for step in STEPS if step != "attention"]  # which only a judge can choose
    assert steps["channels"]["accepted"]
    assert steps["weights"]["accepted"]
    assert steps["channels"]["before"] is None  # nobody judged


def test_mapped_channels_are_written(outlying: Path, tmp_path: Path) -> None:
    quantize(outlying, FEEDS, tmp_path / "on.onnx", QuantConfig(candidates=3, skip=("weights",), threads=1))
    quantize(outlying, FEEDS, tmp_path / "off.onnx", QuantConfig(candidates=3, skip=("weights", *MAPS), threads=1))
    fresh = np.concatenate([feed["tokens"] for feed in correlated(9, 16)])
    (reference,) = run(onnx.load(outlying), {"tokens": fresh})
    noise = {
        name: float(((run(onnx.load(tmp_path / f"{name}.onnx"), {"tokens": fresh}, "all")[0] - reference) ** 2).sum())
        for name in ("on", "off")
    }
    assert noise["on"] < noise["off"] / 1.5


# -------------------------------------------------------------------------------------------------------------- rotation


def patches(seed: int, samples: int) -> list[np.ndarray]:
    """Patches (1, 9, 8) that live near 4 directions."""
    mixing = np.random.default_rng(7).normal(size=(4, 8))
    values = np.random.default_rng(seed).normal(size=(samples, 1, 9, 4)) @ mixing
    return list(values.astype(np.float32))


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a stream that is no graph input, and one of its channels far larger than the others and hardly read."""
    text = (
        embedded(depth=2)
        .replace("float[N,T,8]", "float[N,9,8]")
        .replace("float[5,32] positions", "float[9,32] positions")
    )
    proto = model_of(text)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "positions":
            values[:, 3] *= 60
        elif tensor.name in ("head_W", *(f"b{block}_{name}_W" for block in (0, 1) for name in ("q", "k", "v", "fc1"))):
            values[3] /= 60  # the others are what is read
        if values.ndim == 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = tmp_path_factory.mktemp("embedding") / "model.onnx"
    onnx.save(proto, path)
    return path


ONLY: dict[str, Any] = {"also": ("rotation",), "skip": (*MAPS, "scales", "bias", "weights")}


def test_a_rotated_stream_is_written_with_less_noise_and_no_operator_more(embedding: Path, tmp_path: Path) -> None:
    fresh = np.concatenate(patches(9, 16))
    (reference,) = run(onnx.load(embedding), {"patches": fresh})
    noise, operators = {}, {}
    for name, options in (("on", ONLY), ("off", {"skip": ONLY["skip"]})):
        config = QuantConfig(**options, attention="int8", threads=1)
        report = quantize(embedding, patches(0, 12), tmp_path / f"{name}.onnx", config).report.to_dict()
        written = onnx.load(tmp_path / f"{name}.onnx")
        noise[name] = float(((run(written, {"patches": fresh}, "all")[0] - reference) ** 2).sum())
        operators[name] = sorted(node.op_type for node in written.graph.node)
        if name == "on":
            (step,) = [step for step in report["steps"] if step["name"] == "rotation"]
            assert (step["accepted"], step["kept"], step["layers"]) == (True, 1, 1)
            assert step["parts"] == [{"part": "stream tokens", "channels": 32, "norms": 5}]
            assert step["after"] > step["before"] + 1
    assert noise["on"] < noise["off"] / 1.5
    assert operators["on"] == operators["off"]


def test_a_stream_that_cannot_be_rotated_is_named_with_the_reason(model: Path, tmp_path: Path) -> None:
    step = steps_of(model, tmp_path, **ONLY)["rotation"]
    assert (step["accepted"], step["kept"], step["layers"]) == (False, 0, 1)
    assert step["parts"] == [{"part": "stream tokens", "reason": "tokens is an input of the graph"}]


def test_weights_that_harm_are_not_kept_and_reported_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = vars(weights)["reconstruct_weights"]

    def harmful(*given: Any) -> Any:
        plan, outcome = solve(*given)
        return plan.with_weights({name: 2 * weight for name, weight in plan.weights.items()}), outcome

    monkeypatch.setattr(weights, "reconstruct_weights", harmful)
    step = steps_of(model, tmp_path)["weights"]
    assert (step["accepted"], step["kept"]) == (False, 0)
    assert step["after"] < step["before"] - DOUBT_DB


def test_a_rotation_that_is_not_exact_is_never_used(
    embedding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxvitq.fit.steps.rotation.rewrite.rotation", lambda width, seed: 1.01 * np.eye(width))
    step = steps_of(embedding, tmp_path, patches(0, 12), **ONLY)["rotation"]
    assert (step["accepted"], step["kept"], step["after"]) == (False, 0, None)


def test_one_seed_gives_one_model(embedding: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = QuantConfig(**ONLY, attention="int8", threads=1, seed=seed)
        quantize(embedding, patches(0, 12), tmp_path / f"{name}.onnx", config)
    first, again, other = (onnx.load(tmp_path / f"{name}.onnx").graph for name in "abc")
    assert first == again
    assert first != other


# --------------------------------------------------------------------------------------------------- one-shot iterables


def test_a_generator_serves_every_step(outlying: Path, tmp_path: Path) -> None:
    read: list[int] = []

    def generate() -> Iterator[np.ndarray]:
        for index in range(20):
            read.append(index)
            yield correlated(index, 1)[0]["tokens"]

    assert list(steps_of(outlying, tmp_path, generate())) == STEPS
    assert read == list(range(20))


def test_a_generator_serves_where_every_sample_judges(
    outlying: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More samples are measured than an iterable that is read once can give again."""
    monkeypatch.setattr(outer_layers, "outer_linears_of_8_bits", lambda plan, blockmap: blockmap.linears)
    monkeypatch.setattr(outer_layers, "RUINED_DB", np.inf)
    generated = (correlated(index, 1)[0]["tokens"] for index in range(KEPT_FEEDS + 4))
    assert "outer-linears" in steps_of(outlying, tmp_path, generated)


class Counted:
    """A source that counts its passes."""

    def __init__(self, count: int) -> None:
        self.count, self.passes = count, 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        return ({"x": np.full((1, 2), index, np.float32)} for index in range(self.count))


def first_values(feeds: Any) -> list[float]:
    return [float(feed["x"][0, 0]) for feed in feeds]


def test_a_source_that_gives_the_same_again_is_read_again() -> None:
    source = Counted(20)
    replay = CalibrationDataset(source, again=True)  # type: ignore[arg-type]
    assert first_values(replay) == first_values(replay) == list(range(20))
    assert source.passes == 2
    assert [index for index, _ in replay.held_out()] == [3, 7, 11, 15, 19]


def test_of_another_the_first_are_kept() -> None:
    source = Counted(20)
    replay = CalibrationDataset(source, again=False)  # type: ignore[arg-type]
    assert first_values(replay) == list(range(20))
    assert first_values(replay) == first_values(replay) == list(range(KEPT_FEEDS))
    assert source.passes == 1
    assert [index for index, _ in replay.held_out()] == [3, 7, 11, 15, 19]


def test_one_sample_judges_itself() -> None:
    replay = CalibrationDataset(Counted(1), again=True)  # type: ignore[arg-type]
    assert first_values(replay) == [0]
    assert [index for index, _ in replay.held_out()] == [0]


@pytest.mark.parametrize(
    ("count", "judging"), [(64, list(range(3, 64, 4))), (80, [3 + 4 * (one * 20 // 16) for one in range(16)])]
)
def test_a_few_held_out_samples_judge_spread_over_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, judging: list[int]
) -> None:
    judged: set[tuple[float, ...]] = set()

    class Noting(OutputEvaluator):
        def difference(self, plan: QuantPlan) -> OutputDifference:
            judged.add(tuple(float(feed["tokens"].mean()) for feed in self.feeds))
            return super().difference(plan)

    monkeypatch.setattr(fit_state, "OutputEvaluator", Noting)
    feeds = [feed["tokens"] for feed in correlated(0, count)]
    steps_of(model, tmp_path, feeds, effort="fast")
    assert judged == {tuple(float(feeds[index].mean()) for index in judging)}


# ------------------------------------------------------------------------------------------- shapes that only a run tells

BRANCHES = (
    " zero = Constant<value = int64 {0}>() shape = Shape(x) size = Gather<axis = 0>(shape, zero) some = Less(zero, size)"
    " h = If(some) <then_branch = yes () => (float[P,Q,R] t) { t = Abs(x) },"
    " else_branch = no () => (float[S,T] u) { u = ReduceMean<axes = [0], keepdims = 0>(x) }>"
)
WITH_IF = (
    "(float[N,5,8] x) => (float[N,5,8] y) <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, float[8,8] Wo>{"
    + BRANCHES
    + " q = MatMul(h, Wq) k = MatMul(h, Wk) v = MatMul(h, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " scores = MatMul(q, kt) probs = Softmax<axis = -1>(scores) context = MatMul(probs, v) y = MatMul(context, Wo) }"
)


def test_a_graph_with_branches_of_unknown_shape_is_quantized(tmp_path: Path) -> None:
    onnx.save(model_of(WITH_IF), tmp_path / "model.onnx")
    values = np.random.default_rng(0).normal(size=(8, 5, 8)).astype(np.float32)
    result = quantize(tmp_path / "model.onnx", values, tmp_path / "out.onnx", QuantConfig(candidates=3, threads=1))
    assert result.report.to_dict()["linears"] == {
        "found": 4,
        "quantized": 4,
        "integer_kernels": 4,
        "dynamic": 0,
        "simulated": 0,
        "float": [],
    }
    assert result.report.to_dict()["attention_products"]["integer_kernels"] == 2
    assert result.report.to_dict()["compare"]["sqnr_db"] > 25
    for size in (1, 3):
        assert run(onnx.load(result.output), {"x": values[:size]}, "all")[0].shape == (size, 5, 8)


def test_a_run_on_noise_tells_shapes_that_inference_does_not(tmp_path: Path) -> None:
    onnx.save(model_of(WITH_IF), tmp_path / "model.onnx")
    loaded = load_model(tmp_path / "model.onnx")
    bring_to_canonical_form(loaded, threads=1)
    assert unknown_tensors(loaded.graph) == []
    shape = loaded.graph.tensors()["h"].shape
    assert (len(shape), shape[1:]) == (3, [5, 8])
    assert isinstance(shape[0], str)


def test_where_noise_is_no_input_the_shapes_stay_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from onnxvitq.core.errors import InvalidGraphError

    def fail(*args: object) -> None:
        raise InvalidGraphError("onnxruntime", "the model does not run on this input: no")

    monkeypatch.setattr(canonical_form, "observe_shapes", fail)
    onnx.save(model_of(WITH_IF), tmp_path / "model.onnx")
    loaded = load_model(tmp_path / "model.onnx")
    bring_to_canonical_form(loaded, threads=1)
    unknown = unknown_tensors(loaded.graph)
    assert "h" in unknown
    assert f"shapes of {len(unknown)} tensors stay unknown: the model does not run" in caplog.text


def test_an_ordinary_graph_is_not_run_for_its_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(canonical_form, "observe_shapes")
    onnx.save(model_of(transformer()), tmp_path / "model.onnx")
    loaded = load_model(tmp_path / "model.onnx")
    bring_to_canonical_form(loaded, threads=1)
    assert unknown_tensors(loaded.graph) == []


def test_a_layer_keeps_its_role_when_a_map_hides_its_mlp(tmp_path: Path) -> None:
    """A Mul between an activation and fc2 is no pattern of an MLP; reports still say what the layer is."""
    proto, model = seeded_transformer(0, tokens="9"), tmp_path / "model.onnx"
    for tensor in proto.graph.initializer:
        if tensor.name in ("b0_fc1_b", "b0_fc2_W"):  # an activation's channel 30 times the others
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[5] = 30 if tensor.name == "b0_fc1_b" else values[5] / 30
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, model)
    config = QuantConfig(candidates=3, rounds=1, threads=1, acceptance="always", sensitivity=True)
    result = quantize(model, FEEDS, tmp_path / "out.onnx", config)
    online = next(step for step in result.report.to_dict()["steps"] if step["name"] == "online-channels")
    assert online["kept"] > 0
    kinds = {(part["block"], part["kind"]) for part in result.report.to_dict()["sensitivity"]["parts"]}
    assert {(0, "mlp.fc1.input"), (0, "mlp.fc2.weight"), (1, "mlp.fc2.input")} <= kinds


# ------------------------------------------------------------------------------------------ formats chosen by the output


def test_open_formats_are_chosen_and_reported(outlying: Path, tmp_path: Path) -> None:
    steps = steps_of(outlying, tmp_path, activations="auto", attention="mixed")
    behind = STEPS.index("attention") + 1
    assert list(steps) == [*STEPS[:behind], "activations", *STEPS[behind:]]
    assert steps["softmax"]["layers"] == 0  # nothing is divided late where the product may be float
    assert steps["attention"]["parts"][0]["part"] == "all float"
    assert steps["activations"]["after"] > steps["scales"]["after"]
    assert steps["weights"]["before"] == pytest.approx(steps["activations"]["after"], abs=0.01)


def test_formats_can_be_chosen_for_the_baseline(outlying: Path, tmp_path: Path) -> None:
    steps = steps_of(outlying, tmp_path, activations="auto", attention="auto", objective="minmax")
    assert list(steps) == ["minmax", "activations", "bias"]
    assert steps["activations"]["before"] is None


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["dynamic", "token"])
def test_run_time_ranges_serve_every_step(outlying: Path, tmp_path: Path, activations: str) -> None:
    steps = steps_of(outlying, tmp_path, activations=activations)
    static = steps_of(outlying, tmp_path, activations="static")
    assert list(steps) == STEPS
    assert steps["channels"]["before"] > static["channels"]["before"]


def test_the_preset_for_accuracy_gains_three_decibels(outlying: Path, tmp_path: Path) -> None:
    """The output's error is at most half as large, by a model whose audit passes and whose blocks are integer."""
    config = QuantConfig(candidates=3, rounds=1, threads=1)
    plain, accurate = (
        quantize(outlying, FEEDS, tmp_path / "out.onnx", one).report.to_dict()
        for one in (config, replace(config, preset="accuracy"))
    )
    assert accurate["compare"]["sqnr_db"] > plain["compare"]["sqnr_db"] + 3
    outside = {linear.name for linear in inspect(outlying).blockmap.linears if not linear.role.startswith("block")}
    assert {layer["name"] for layer in accurate["linears"]["float"]} == outside != set()
    assert accurate["audit_passed"]
