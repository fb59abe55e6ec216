"""A folder in which the documentation's commands are run: the repository's own files, and stand-ins for the reader's."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commandline import image_attention, save_attention
from documentation import ROOT
from PIL import Image

from onnxvitq.runtime.session import Session

LINKED = ("docs", "models", "tests", "tools", "README.md", ".ci", "setup.cfg")
SIDE = 16


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: ``model.onnx``, ``preprocessor_config.json``, ``images/``, ``test/`` with a folder a class,
    ``samples.npz``; nobody writes here.
    """
    folder = tmp_path_factory.mktemp("reader")
    save_attention(folder / "model.onnx", image_attention(SIDE))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "do_rescale": True}
            | {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        )
    )
    rng = np.random.default_rng(0)
    for name, count in (("images", 16), ("more_images", 16)):
        (folder / name).mkdir()
        for index in range(count):
            pixels = np.clip(rng.normal(90 + 5 * index, 50, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    samples = rng.normal(size=(16, 3, SIDE, SIDE)).astype(np.float32)
    np.savez(folder / "samples.npz", image=samples)
    _save_labelled(folder, rng)
    return folder


def _save_labelled(folder: Path, rng: np.random.Generator) -> None:
    """Images in the folder of the class that the float model gives them, so that its labels are right."""
    session = Session(folder / "model.onnx", threads=1)
    for index in range(24):
        pixels = np.clip(rng.normal(100, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        feed = ((pixels / np.float32(255) - 0.5) / 0.25).transpose(2, 0, 1)[None].astype(np.float32)
        decided = int(session.run({"image": feed})[0].argmax())
        (folder / "test" / str(decided)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "test" / str(decided) / f"{index:02}.png")


@pytest.fixture
def sandbox(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with links to the repository's files and to the stand-ins; back to the old one afterwards."""
    monkeypatch.setenv("COLUMNS", "100")
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    for path in stand_ins.iterdir():
        (tmp_path / path.name).symlink_to(path)
    with _in_folder(tmp_path):
        yield tmp_path


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before, known = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = known
