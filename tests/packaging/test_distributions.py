"""The wheel and the source distribution: what is in them, and that they run where no checkout is."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

import onnxvitq

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "fashion_vit"
NOT_SOURCE = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "site", "coverage", "vit_s")
BUILD = "import setuptools.build_meta as backend, sys; getattr(backend, f'build_{sys.argv[1]}')(sys.argv[2])"


def build(kind: str, source: Path, folder: Path) -> Path:
    """Call the build backend as pip does, in this interpreter: nothing is fetched."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, kind, str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the checkout: building leaves files beside the sources."""
    source = tmp_path_factory.mktemp("sources") / "onnxvitq"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution makes, so that nothing of the checkout can get into it."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, without its dependencies: those of this interpreter have to do."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def run(installed: Path, folder: Path, arguments: Sequence[object]) -> str:
    """Run Python in a folder that holds no checkout, with the installed package first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *map(str, arguments)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"onnxvitq"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "onnxvitq").rglob("*.py")}
    assert modules <= set(names)
    assert "onnxvitq/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_metadata_says_what_the_package_is(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["Name"] == "onnxvitq"
    assert fields["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in fields.get_all("Classifier", [])
    assert fields["Keywords"]
    assert fields.get_all("Project-URL", [])
    assert str(fields.get_payload()).startswith((ROOT / "README.md").read_text()[:40])


def test_the_source_distribution_holds_what_its_tests_need(unpacked: Path) -> None:
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "setup.cfg", "pyproject.toml", "tests/conftest.py"):
        assert (unpacked / name).is_file(), name
    for folder in ("models", "tests", "tools", "onnxvitq"):
        files = {path.relative_to(unpacked) for path in (unpacked / folder).rglob("*.py")}
        assert files == {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}, folder
    assert not list(unpacked.rglob("__pycache__"))


def test_the_installed_package_prints_its_help(installed: Path, tmp_path: Path) -> None:
    assert "usage: " in run(installed, tmp_path, ["-m", "onnxvitq", "--help"])
    where, version = run(
        installed, tmp_path, ["-c", "import onnxvitq; print(onnxvitq.__file__); print(onnxvitq.__version__)"]
    ).splitlines()
    assert Path(where).is_relative_to(installed)
    assert version == onnxvitq.__version__


def test_the_installed_package_quantizes(installed: Path, tmp_path: Path) -> None:
    data = tmp_path / "noise.npy"
    np.save(data, np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32))
    command = [
        "-m",
        "onnxvitq",
        MODEL / "model.onnx",
        "--calib",
        data,
        "-o",
        "int8.onnx",
        "--effort",
        "fast",
        "--quiet",
    ]
    run(installed, tmp_path, command)
    written = (tmp_path / "int8.onnx").stat().st_size
    assert 0 < written < (MODEL / "model.onnx").stat().st_size
