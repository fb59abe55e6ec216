"""Models with their weights in a second file: named by contents, replaced with the model, gone with it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import feeds_of, model_of, run

from onnxvitq.core.errors import RewriteError
from onnxvitq.graph import writing
from onnxvitq.graph.checking import check_written
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import atomic_model, data_beside, save_model
from onnxvitq.runtime.session import Session

WIDE = "(float[N,64] x) => (float[A,B] y) <float[64,64] W> { y = MatMul(x, W) }"


def write(
    model: onnx.ModelProto, path: Path, *, external: bool = True, then: Callable[[], None] = lambda: None
) -> Path | None:
    """As the pipeline does; then: before the place is taken. The file of the weights."""
    data = data_beside(model, path, asked=external)
    with atomic_model(path) as temporary:
        save_model(model, temporary, data)
        then()
    return data


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def other(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with other weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer[0].raw_data = bytes(len(copy.graph.initializer[0].raw_data))
    return copy


def test_weights_in_a_second_file_are_the_same_model(tmp_path: Path) -> None:
    model, path = model_of(WIDE), tmp_path / "model.onnx"
    feeds = feeds_of(model)
    expected = run(model, feeds)
    before = path.with_name("before.onnx")
    save_model(model, before)
    data = data_beside(model, path, asked=True)
    assert data is not None
    with atomic_model(path) as temporary:
        size = save_model(model, temporary, data)
        assert not path.exists()
    assert names(tmp_path) == {"before.onnx", "model.onnx", data.name}
    assert size == path.stat().st_size + data.stat().st_size
    assert data.stat().st_size == 64 * 64 * 4
    assert path.stat().st_size < 1000
    assert data.stat().st_mode == path.stat().st_mode == before.stat().st_mode  # whoever reads one reads the other
    assert np.array_equal(Session(path).run(feeds)[0], expected[0])
    assert load_model(path).files == (path, data)


def test_the_file_of_the_weights_is_called_by_what_is_in_it(tmp_path: Path) -> None:
    model, path = model_of(WIDE), tmp_path / "model.onnx"
    data = data_beside(model, path, asked=True)
    assert data is not None
    assert re.fullmatch(r"model\.onnx\.[0-9a-f]{16}\.data", data.name)
    assert data_beside(model, path, asked=True) == data
    assert data_beside(other(model), path, asked=True) != data


def test_weights_that_one_message_cannot_hold_get_a_file_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = model_of(WIDE), tmp_path / "model.onnx"
    assert data_beside(model, path, asked=False) is None
    monkeypatch.setattr(writing, "PROTOBUF_LIMIT", 64 * 64 * 4)
    assert data_beside(model, path, asked=False) == data_beside(model, path, asked=True)


def test_a_model_without_large_weights_stays_one_file(tmp_path: Path) -> None:
    model, path = model_of(WIDE.replace("64", "15")), tmp_path / "model.onnx"
    assert write(model, path) is None
    assert names(tmp_path) == {"model.onnx"}
    assert load_model(path).files == (path,)


def test_a_model_that_is_replaced_takes_its_weights_along(tmp_path: Path) -> None:
    model, path = model_of(WIDE), tmp_path / "model.onnx"
    mine = {"model.onnx.data", "model.onnx.b.0123456789abcdef.data", "model.onnx.0123456789abcdef.data.bak"}
    for name in (*mine, "model.onnx.fedcba9876543210.data"):  # the last one of a run that was killed
        (tmp_path / name).write_bytes(b"something")
    second, third = other(model), model_of(WIDE)
    first = write(model, path)
    assert first is not None
    assert names(tmp_path) == {"model.onnx", first.name, *mine}
    again = write(second, path)
    assert again is not None
    assert again != first
    assert names(tmp_path) == {"model.onnx", again.name, *mine}
    assert write(third, path, external=False) is None
    assert names(tmp_path) == {"model.onnx", *mine}


def test_the_check_of_the_written_graph_includes_the_shapes_of_weights_elsewhere(tmp_path: Path) -> None:
    model, path = model_of(WIDE.replace("float[64,64] W", "float[65,64] W")), tmp_path / "wrong.onnx"
    save_model(model, path, data_beside(model, path, asked=True))
    with pytest.raises(RewriteError, match=r"^out\.onnx: the ONNX checker refuses the written graph"):
        check_written(path, "out.onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("call", [1, 2], ids=["weights", "model"])
def test_an_interrupt_while_a_file_is_half_written_leaves_the_old_model_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    path, model = tmp_path / "model.onnx", model_of(WIDE)
    new = other(model)
    write(model, path)
    before, save, calls = contents(tmp_path), onnx.save, 0

    def interrupted(proto: onnx.ModelProto, file: Path, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            file.with_name(options.get("location", file.name)).write_bytes(b"half")
            raise KeyboardInterrupt
        save(proto, file, **options)

    monkeypatch.setattr(onnx, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(new, path)
    assert calls == call
    assert contents(tmp_path) == before


def test_an_interrupt_before_the_place_is_taken_leaves_the_old_model_and_its_weights(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", model_of(WIDE)
    new = other(model)
    write(model, path)
    before, files = contents(tmp_path), 0

    def interrupt() -> None:
        nonlocal files
        files = len(contents(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(new, path, then=interrupt)
    assert files == 4  # both models, each with its weights
    assert contents(tmp_path) == before


def test_an_interrupt_once_the_place_is_taken_leaves_the_new_model_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, replace = tmp_path / "model.onnx", model_of(WIDE), Path.replace
    new = other(model)
    expected = run(new, feeds_of(new))[0]
    write(model, path)

    def interrupted(file: Path, target: Path) -> None:
        replace(file, target)
        if target == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    data = data_beside(new, path, asked=True)
    assert data is not None
    with pytest.raises(KeyboardInterrupt):
        write(new, path)
    assert set(contents(tmp_path)) == {"model.onnx", data.name}
    assert np.array_equal(Session(path).run(feeds_of(model))[0], expected)


def test_what_stands_in_the_place_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model at all")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model_of(WIDE), path, then=interrupt)
    assert contents(tmp_path) == {"model.onnx": b"no model at all"}
