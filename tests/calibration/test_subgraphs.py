"""Tensors kept in memory or in files; a network run subgraph by subgraph over all samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fitted_cases import Case, correlated, linear_of, seeded_transformer
from textgraph import difference, run

from onnxvitq.calibration.subgraphs import IN_MEMORY, SubgraphRunner, TensorStore
from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.numerics.fit import times

VALUES: list[np.ndarray] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(4, np.int64),
    np.zeros((0, 5), np.float32),
]
ALL_KINDS: list[np.ndarray] = [*VALUES, np.array([True, False]), np.arange(40, dtype=np.float64)]


@pytest.mark.parametrize("limit", [0, 25, 100, IN_MEMORY])
def test_values_come_back_whatever_the_limit(tmp_path: Path, limit: int) -> None:
    store = TensorStore(tmp_path, limit)
    for sample in range(3):
        for index, value in enumerate(ALL_KINDS):
            store.append(f"tensor/{index}", value if value.dtype == bool else value + sample)
    assert store.names == [f"tensor/{index}" for index in range(len(ALL_KINDS))]
    for sample in range(3):
        for index, value in enumerate(ALL_KINDS):
            expected = value if value.dtype == bool else value + sample
            found = store.get(f"tensor/{index}", sample)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert np.array_equal(found, expected)


def test_what_is_kept_in_memory_is_a_copy(tmp_path: Path) -> None:
    # An output of a session keeps all of the session's memory as long as it lasts: 260 MB at the size of a ViT-B.
    store, value = TensorStore(tmp_path), np.ones(6, np.float32)
    store.append("a", value)
    value[:] = 7
    assert store.get("a", 0).max() == 1


def test_what_does_not_fit_goes_to_files_and_what_is_dropped_is_gone(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, 100)
    for name in "ab":
        for _ in range(2):
            store.append(name, np.zeros(10, np.float32))  # 40 bytes
    assert len(list(tmp_path.iterdir())) == 2  # both samples of b
    store.append("c", np.ones(5, np.float32))  # the last 20 bytes
    assert len(list(tmp_path.iterdir())) == 2
    store.drop("b")
    assert list(tmp_path.iterdir()) == []
    assert store.names == ["a", "c"]
    store.append("d", np.zeros(1, np.float32))
    assert len(list(tmp_path.iterdir())) == 1  # full
    store.drop("a")
    store.append("e", np.zeros(20, np.float32))  # in the room of a
    assert len(list(tmp_path.iterdir())) == 1
    for name in "cde":
        store.drop(name)
    assert list(tmp_path.iterdir()) == []
    assert store.names == []


def test_what_was_dropped_is_not_known(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, 0)
    store.append("a", VALUES[0])
    store.drop("a")
    with pytest.raises(KeyError):
        store.get("a", 0)


def exact(case: Case, folder: Path) -> SubgraphRunner:
    return SubgraphRunner(case.graph, case.layers.blockmap.linears, case.feeds, folder, threads=1)


def walk(case: Case, runner: SubgraphRunner) -> list[list[str]]:
    """Runs everything in float; the names that were held before each linear layer."""
    held: list[list[str]] = []
    for linear in case.layers.blockmap.linears:
        runner.reach([linear.input])
        held.append(sorted(runner.values.names))
        weight, bias = case.layers.weight(linear.name), case.layers.bias(linear.name)
        runner.compute(linear, lambda x, weight=weight, bias=bias: times(x, weight) + bias)  # type: ignore[misc]
    runner.reach(["logits"])
    return held


@pytest.mark.parametrize("limit", [0, IN_MEMORY])
def test_all_samples_come_out_as_of_the_whole_model(
    transformer_case: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    case = transformer_case(samples=3)
    runner = exact(case, tmp_path / "subgraphs")
    runner.values = _moved(runner, limit)
    walk(case, runner)
    assert runner.samples == 3
    for sample, feed in enumerate(case.feeds):
        expected = run(seeded_transformer(0), feed)
        assert difference([runner.values.get("logits", sample)], expected) < 1e-5  # products added up in another order


def _moved(runner: SubgraphRunner, limit: int) -> TensorStore:
    """The same values in a store of another limit."""
    store = TensorStore(runner._folder, limit)
    for name in runner.values.names:
        for sample in range(runner.samples):
            store.append(name, runner.values.get(name, sample))
    return store


def test_only_what_is_needed_later_is_held(transformer_case: Callable[..., Case], tmp_path: Path) -> None:
    case = transformer_case(samples=2)
    held = walk(case, exact(case, tmp_path / "subgraphs"))
    names = [linear.name for linear in case.layers.blockmap.linears]
    before = dict(zip(names, held, strict=True))
    assert before["b0_q"] == ["b0_norm1", "tokens"]  # tokens: the residual stream
    assert before["b0_fc1"] == ["b0_mid", "b0_norm2"]
    assert before["b0_fc2"] == ["b0_gelu", "b0_mid"]
    assert before["head"] == ["class_token"]


def test_no_file_is_left_but_stored_tensors(transformer_case: Callable[..., Case], tmp_path: Path) -> None:
    case = transformer_case(samples=2)
    walk(case, exact(case, tmp_path / "subgraphs"))
    assert list((tmp_path / "subgraphs").iterdir()) == []


def test_feeds_are_read_once(transformer_case: Callable[..., Case], tmp_path: Path) -> None:
    case = transformer_case(samples=2)
    runner = SubgraphRunner(
        case.graph, case.layers.blockmap.linears, iter(case.feeds), tmp_path / "subgraphs", threads=1
    )
    walk(case, runner)
    assert runner.samples == 2


def test_a_tensor_behind_a_layer_is_not_reachable_before_it(
    transformer_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = transformer_case(samples=1)
    runner = exact(case, tmp_path / "subgraphs")
    assert runner.can_reach("b0_norm1")
    assert not runner.can_reach("b0_mid")
    first = linear_of(case, "b0_q")
    runner.reach([first.input])
    runner.compute(first, lambda x: times(x, case.layers.weight("b0_q")))
    assert runner.can_reach("b0_q_t")


def test_a_sample_that_does_not_run_is_an_error(case_of: Callable[..., Case], tmp_path: Path) -> None:
    case = case_of(seeded_transformer(0, tokens="9"), correlated(0, 4))
    odd = [*case.feeds[:1], {"tokens": np.zeros((1, 9, 31), np.float32)}]
    runner = SubgraphRunner(case.graph, case.layers.blockmap.linears, odd, tmp_path / "subgraphs", threads=1)
    with pytest.raises(InvalidGraphError, match="does not run on this input"):
        runner.reach(["b0_norm1"])
