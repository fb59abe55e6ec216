"""Float against quantized: the figures move with the outputs, and a wrong canonical form or a NaN is an error."""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import RewriteError, UnsupportedModelError
from onnxvitq.evaluation import compare as comparing
from onnxvitq.evaluation.compare import PLAIN_SAMPLES, compare
from onnxvitq.numerics.decibels import CAP_DB
from onnxvitq.report.model_records import OutputComparison
from onnxvitq.runtime.session import Level, Session

WEIGHT = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
FEEDS = [{"x": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(6)]
LINEAR = "(float[N,4] x) => (float[N,3] y) <float[4,3] W> { y = MatMul(x, W) }"


def saved(path: Path, text: str = LINEAR, weight: np.ndarray = WEIGHT) -> Path:
    onnx.save(model_of(text, weights={"W": weight}), path)
    return path


def run(
    models: tuple[Path, Path], feeds: Sequence[Mapping[str, np.ndarray]], weight: np.ndarray = WEIGHT
) -> OutputComparison:
    return compare(models, feeds, [feed["x"] @ weight for feed in feeds], threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "float.onnx")


def test_a_model_against_itself_is_perfect(model: Path) -> None:
    result = run((model, model), FEEDS)
    assert result.samples == 6
    # numpy and onnxruntime may add up four products in another order: a few float32 rounding errors, 2 ** -24 each.
    assert result.sqnr_db >= min(CAP_DB, 20 * np.log10(2**24) - 20)
    assert (result.cosine, result.top1_agreement, result.optimised_vs_plain) == (1.0, 1.0, 0.0)


def test_a_perturbed_model_lowers_every_figure(model: Path, tmp_path: Path) -> None:
    swapped = saved(tmp_path / "other.onnx", weight=np.ascontiguousarray(WEIGHT[:, ::-1]))
    result = run((model, swapped), FEEDS)
    assert result.sqnr_db < 10
    assert result.cosine < 0.99
    assert result.top1_agreement is not None
    assert result.top1_agreement < 1


def test_sqnr_of_a_known_error(model: Path, tmp_path: Path) -> None:
    result = run((model, saved(tmp_path / "other.onnx", weight=WEIGHT * np.float32(1.125))), FEEDS)
    assert result.sqnr_db == round(-20 * np.log10(0.125), 2)
    assert result.top1_agreement == 1.0


def test_what_the_optimiser_changes_is_optimised_vs_plain(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    class Gaining(Session):
        """Without optimisation every output is half as large again."""

        def __init__(self, path: Path, *, level: Level = "all", threads: int = 0) -> None:
            super().__init__(path, level=level, threads=threads)
            self.gain = np.float32(1.5 if level == "disabled" else 1)

        def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
            return [self.gain * output for output in super().run(feeds, outputs)]

    monkeypatch.setattr(comparing, "Session", Gaining)
    result = run((model, model), FEEDS)
    assert result.optimised_vs_plain == 0.333  # of the plain output's norm, three digits
    assert result.cosine == 1.0


def test_one_session_is_open_at_a_time(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    opened: list[weakref.ref[Session]] = []

    class Counted(Session):
        def __init__(self, path: Path, **options: Any) -> None:
            assert [one for one in opened if one() is not None] == []
            super().__init__(path, **options)
            opened.append(weakref.ref(self))

    monkeypatch.setattr(comparing, "Session", Counted)
    run((model, model), FEEDS)
    assert len(opened) == 3


def test_as_many_feeds_are_read_as_there_are_references(model: Path) -> None:
    done: list[int] = []
    feeds = iter(FEEDS)
    result = compare((model, model), feeds, [FEEDS[0]["x"] @ WEIGHT], threads=1, progress=done.append)
    assert (result.samples, done) == (1, [1])


def test_fewer_feeds_than_references_are_counted_as_they_are(model: Path) -> None:
    references = [feed["x"] @ WEIGHT for feed in FEEDS]
    assert compare((model, model), FEEDS[:2], references, threads=1).samples == 2


def test_samples_of_a_batch_are_counted_one_by_one(model: Path) -> None:
    feed = {"x": np.concatenate([feed["x"] for feed in FEEDS])}
    assert run((model, model), [feed, feed]).samples == 12


def test_progress_counts_feeds(model: Path) -> None:
    done: list[int] = []
    compare((model, model), FEEDS, [feed["x"] @ WEIGHT for feed in FEEDS], threads=1, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]


def test_agreement_is_none_without_classes(tmp_path: Path) -> None:
    text = (
        "(float[N,4] x) => (float[N,1,3] y) <float[4,3] W>"
        "{ h = MatMul(x, W) axis = Constant<value = int64[1] {1}>() y = Unsqueeze(h, axis) }"
    )
    model = saved(tmp_path / "rank3.onnx", text)
    references = [(feed["x"] @ WEIGHT)[:, None] for feed in FEEDS]
    result = compare((model, model), FEEDS, references, threads=1)
    assert result.top1_agreement is None
    assert result.cosine == 1.0


def test_a_wrong_canonical_form_is_an_error(model: Path) -> None:
    with pytest.raises(RewriteError, match="canonical form differs by") as caught:
        run((model, model), FEEDS, WEIGHT * np.float32(1.01))
    assert caught.value.where == str(model)


def test_the_canonical_form_is_checked_on_the_first_samples_only(model: Path) -> None:
    references = [feed["x"] @ WEIGHT for feed in FEEDS]
    references[PLAIN_SAMPLES:] = [2 * reference for reference in references[PLAIN_SAMPLES:]]
    assert compare((model, model), FEEDS, references, threads=1).sqnr_db < 20


def test_a_quantized_model_that_gives_nan_is_an_error(model: Path, tmp_path: Path) -> None:
    broken = saved(tmp_path / "broken.onnx", LINEAR.replace("y = MatMul(x, W)", "h = MatMul(x, W) y = Sqrt(h)"))
    assert any((feed["x"] @ WEIGHT < 0).any() for feed in FEEDS)
    with pytest.raises(RewriteError, match="a NaN or an infinity at calibration sample 0"):
        run((model, broken), FEEDS)


RANDOM = "(float[N,4] x) => (float[N,3] y) <float[4,3] W> { n = RandomNormalLike(x) z = Add(x, n) y = MatMul(z, W) }"


def test_a_random_model_is_told_from_a_wrong_pass(tmp_path: Path) -> None:
    model = saved(tmp_path / "random.onnx", RANDOM)
    with pytest.raises(UnsupportedModelError, match="random: two runs"):
        run((model, model), FEEDS)
