"""Top-1 of two models on labelled batches, worked by hand on models of one product."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import DataError
from onnxvitq.evaluation.labelled import evaluate_labelled
from onnxvitq.numerics.decibels import CAP_DB
from onnxvitq.report.model_records import EvaluationReport

EYE = np.eye(3, dtype=np.float32)  # the scores are the inputs
SWAPPED = EYE[:, [1, 0, 2]]  # classes 0 and 1 exchanged
ROWS = np.array([[5, 1, 0], [1, 5, 0], [0, 1, 5], [5, 0, 1]], np.float32)  # classes 0, 1, 2, 0
LABELS = np.array([0, 1, 2, 1], np.int64)


def saved(path: Path, weight: np.ndarray, output: str = "N,3") -> Path:
    text = f"(float[N,3] x) => (float[{output}] y) <float[3,{weight.shape[1]}] W> {{ y = MatMul(x, W) }}"
    onnx.save(model_of(text, weights={"W": np.ascontiguousarray(weight)}), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "eye.onnx", EYE)


def test_a_model_against_itself(model: Path) -> None:
    result = evaluate_labelled((model, model), [({"x": ROWS}, LABELS)], threads=1)
    assert result == EvaluationReport(
        samples=4,
        reference=75.0,
        quantized=75.0,
        agreement=1.0,
        sqnr_db=CAP_DB,
        task="classification",
        metric="top1",
    )


def test_figures_worked_by_hand(model: Path, tmp_path: Path) -> None:
    swapped = saved(tmp_path / "swapped.onnx", SWAPPED)
    result = evaluate_labelled((model, swapped), [({"x": ROWS}, LABELS)], threads=1)
    # Decisions 0, 1, 2, 0 and 1, 0, 2, 1: right are the third and the last.
    assert (result.reference, result.quantized, result.agreement) == (75.0, 50.0, 0.25)
    error = 2 * (16 + 16 + 1 + 25)
    assert result.sqnr_db == round(10 * np.log10(float((ROWS**2).sum()) / error), 2)


def test_the_order_of_the_models_matters(model: Path, tmp_path: Path) -> None:
    swapped = saved(tmp_path / "swapped.onnx", SWAPPED)
    result = evaluate_labelled((swapped, model), [({"x": ROWS}, LABELS)], threads=1)
    assert (result.reference, result.quantized) == (50.0, 75.0)


def test_batches_of_any_size_give_the_same(model: Path, tmp_path: Path) -> None:
    swapped = saved(tmp_path / "swapped.onnx", SWAPPED)
    whole = evaluate_labelled((model, swapped), [({"x": ROWS}, LABELS)], threads=1)
    parts = [({"x": ROWS[:1]}, LABELS[:1]), ({"x": ROWS[1:]}, LABELS[1:])]
    assert evaluate_labelled((model, swapped), parts, threads=1) == whole


def test_rows_that_fill_up_a_batch_do_not_count(model: Path, tmp_path: Path) -> None:
    swapped = saved(tmp_path / "swapped.onnx", SWAPPED)
    filled = [({"x": ROWS}, LABELS), ({"x": np.repeat(ROWS[:1], 4, axis=0)}, LABELS[:0])]
    expected = evaluate_labelled((model, swapped), [({"x": ROWS}, LABELS)], threads=1)
    assert evaluate_labelled((model, swapped), filled, threads=1) == expected
    short = evaluate_labelled((model, swapped), [({"x": ROWS}, LABELS[:3])], threads=1)
    assert (short.samples, short.reference) == (3, 100.0)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 2, -1]])
def test_labels_beyond_the_classes(model: Path, labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"labels: expected classes 0 to 2, got -?[01] to [23]"):
        evaluate_labelled((model, model), [({"x": ROWS}, np.array(labels))], threads=1)


def test_no_samples(model: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate_labelled((model, model), [], threads=1)


def test_outputs_that_are_no_scores(model: Path, tmp_path: Path) -> None:
    single = saved(tmp_path / "single.onnx", EYE[:, :1], "N,1")
    with pytest.raises(DataError, match=r"expected class scores \(batch, classes\), got shape \[4, 1\]"):
        evaluate_labelled((single, single), [({"x": ROWS}, LABELS * 0)], threads=1)


def test_models_of_different_classes(model: Path, tmp_path: Path) -> None:
    two = saved(tmp_path / "two.onnx", EYE[:, :2], "N,2")
    with pytest.raises(DataError, match=r"expected 3 classes as in .*eye\.onnx, got 2") as caught:
        evaluate_labelled((model, two), [({"x": ROWS}, LABELS * 0)], threads=1)
    assert caught.value.where == str(two)
