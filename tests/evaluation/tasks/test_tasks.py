"""A task that is no part of the package: one object, handed to ``evaluate`` and ``quantize``, changes what is evaluated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from textgraph import model_of

import onnxvitq
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray
from onnxvitq.evaluation.tasks.choose import choose_task
from onnxvitq.evaluation.tasks.classification import Classification
from onnxvitq.evaluation.tasks.features import Features

# One attention; its first output is features of every token, its second 4 scores of the whole.
TWO_OUTPUTS = (
    "(float[N,5,8] x) => (float[N,5,8] features, float[N,4] scores)"
    " <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, float[8,8] Wo, float[8,4] Ws>"
    "{ q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " logits = MatMul(q, kt) probs = Softmax<axis = -1>(logits) context = MatMul(probs, v) features = MatMul(context, Wo)"
    " mean = ReduceMean<axes = [1], keepdims = 0>(features) scores = MatMul(mean, Ws) }"
)
DATA = np.random.default_rng(0).normal(size=(16, 5, 8)).astype(np.float32)


class TopTwo(Classification):
    """Class scores as the last output, of which the right one may also be the second largest."""

    name = "top-two"
    metric = "top2"

    def evaluated_output(self, names: Sequence[str]) -> str:
        return names[-1]

    def scores(self, output: FloatArray, labels: LongArray) -> DoubleArray:
        best = np.argsort(output, axis=1)[:, -2:]
        return (best == labels[:, None]).any(axis=1).astype(np.float64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(TWO_OUTPUTS), path)
    return path


def test_a_task_says_which_output_is_evaluated_and_reported(model: Path, tmp_path: Path) -> None:
    config = QuantConfig(candidates=4, threads=1, sensitivity=True)
    plain, mine = (
        onnxvitq.quantize(model, DATA, tmp_path / "out.onnx", config, task=task).report for task in (None, TopTwo())
    )
    assert (plain.task, plain.compare.output, plain.compare.top1_agreement) == ("features", "features", None)
    assert (mine.task, mine.compare.output) == ("top-two", "scores")
    assert mine.compare.top1_agreement is not None
    assert [report.sensitivity.output for report in (plain, mine) if report.sensitivity] == ["features", "scores"]
    assert all(step.agreement is None for step in plain.steps)
    assert all(step.agreement is not None for step in mine.steps)
    assert mine.compare.sqnr_db != plain.compare.sqnr_db


def test_a_promise_is_about_what_the_task_decides(model: Path, tmp_path: Path) -> None:
    config = QuantConfig(objective="minmax", threads=1, max_drop=0.9)
    with pytest.raises(ConfigError, match="max_drop: expected class scores"):
        onnxvitq.quantize(model, DATA, tmp_path / "out.onnx", config)
    quality = onnxvitq.quantize(model, DATA, tmp_path / "out.onnx", config, task=TopTwo()).report.quality
    assert quality is not None
    assert quality.kept


def test_a_task_gives_the_metric_of_labelled_data(model: Path, tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 4, len(DATA))
    np.savez(tmp_path / "labelled.npz", x=DATA, y=labels)
    top1, top2 = (
        onnxvitq.evaluate((model, model), tmp_path / "labelled.npz", task=task, threads=1)
        for task in (LastOutput(), TopTwo())
    )
    assert (top1.metric, top2.metric) == ("top1", "top2")
    assert top2.to_dict()["top2_reference"] == top2.reference > top1.reference
    assert (top2.task, top2.agreement) == ("top-two", 1.0)


class LastOutput(Classification):
    """Class scores as the last output."""

    def evaluated_output(self, names: Sequence[str]) -> str:
        return names[-1]


@pytest.mark.parametrize(
    ("shape", "task"), [((8, 10), Classification), ((8, 1), Features), ((8,), Features), ((8, 5, 10), Features)]
)
def test_without_one_the_task_follows_from_the_shape(shape: tuple[int, ...], task: type[Features]) -> None:
    assert type(choose_task(shape)) is task
    given = TopTwo()
    assert choose_task(shape, given) is given


def test_features_decide_nothing() -> None:
    rows = np.ones((3, 4), np.float32)
    features = Features()
    assert features.decisions(rows) is None
    for refused in (
        lambda: features.scores(rows, np.zeros(3, np.int64)),
        lambda: features.expected_drop(rows, (rows, rows), None),
    ):
        with pytest.raises(ConfigError, match=r"expected class scores \(batch, classes\), got shape \[3, 4\]"):
            refused()
    assert features.chance(rows) == 0


def test_classification_by_hand() -> None:
    task = Classification()
    rows = np.array([[0.0, 2.0, 1.0], [5.0, 4.0, 3.0]], np.float32)
    decided: NDArray[np.int64] | None = task.decisions(rows)
    assert decided is not None
    assert decided.tolist() == [1, 0]
    assert task.scores(rows, np.array([1, 2])).tolist() == [1.0, 0.0]
    assert task.chance(rows) == pytest.approx(1 / 3)
    assert task.refusal(rows) == task.refusal(rows, np.array([0, 2])) == ""
    assert task.refusal(rows, np.array([0, 3])) == "expected classes 0 to 2, got 0 to 3"
    assert task.refusal(rows[0]) == "expected class scores (batch, classes), got shape [3]"
