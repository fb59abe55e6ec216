"""Ctrl-C and SIGTERM at any moment: exit 130, the old output untouched, no temporary file anywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interrupt_driver
import numpy as np
import pytest
from commandline import Ran, image_attention, run_cli, save_attention
from interrupt_driver import LATE, MOMENTS, OLD

import onnxvitq
from onnxvitq.cli.main import COMMANDS

pytestmark = pytest.mark.slow  # every moment is a whole run
ROOT = str(Path(onnxvitq.__file__).parent.parent)
LEFT = {
    "code": 130,
    "error": "onnxvitq: interrupted\n",
    "files": ["model_int8.onnx"],
    "old": True,
    "scratch": [],
}
WHOLE = {"code": 0, "error": "", "files": ["model_int8.onnx", "report.json"], "old": False, "scratch": []}


def environment(folder: Path) -> dict[str, str]:
    # onnxruntime's telemetry would put a file of its own into TMPDIR as soon as it is imported.
    return {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(folder / "scratch"), "ORT_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="module")
def left(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each interrupted command left, by its moment; one process runs them all."""
    folder = tmp_path_factory.mktemp("interrupt")
    model = save_attention(folder / "model.onnx", image_attention(16))
    size = model.stat().st_size
    (folder / "images").mkdir()
    (folder / "scratch").mkdir()
    for image in sorted(images.iterdir())[:6]:
        shutil.copy(image, folder / "images")
    command = [sys.executable, str(Path(interrupt_driver.__file__)), str(folder)]
    ran = subprocess.run(command, capture_output=True, env=environment(folder), timeout=300, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    results = json.loads(ran.stdout)
    assert isinstance(results, dict)
    sizes = {result.pop("model") for result in results.values() if isinstance(result, dict)}
    assert sizes == {size}
    return results


@pytest.mark.parametrize("moment", [moment[0] for moment in MOMENTS])
def test_a_signal_leaves_the_disk_as_it_was(left: dict[str, Any], moment: str) -> None:
    assert left[moment] == LEFT


@pytest.mark.parametrize("moment", [moment[0] for moment in LATE])
def test_a_signal_that_comes_too_late_changes_nothing(left: dict[str, Any], moment: str) -> None:
    assert left[moment] == WHOLE


def test_a_second_signal_does_not_disturb_the_clearing_up(left: dict[str, Any]) -> None:
    assert left["twice"] == LEFT


def test_a_background_job_that_ignores_ctrl_c_goes_on(left: dict[str, Any]) -> None:
    assert left["ignored"] == WHOLE


def test_signal_handlers_are_given_back(left: dict[str, Any]) -> None:
    assert left["handlers"] == [True, True]


def test_an_interrupted_import_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(arguments: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        raise AssertionError

    def fail(arguments: object) -> int:
        raise ImportError("no such module")

    monkeypatch.setitem(COMMANDS, "inspect", load)
    assert run_cli(capsys, "inspect") == Ran(code=130, out="", err="onnxvitq: interrupted\n")
    monkeypatch.setitem(COMMANDS, "inspect", fail)
    with pytest.raises(ImportError, match="no such module"):  # of an installation that is broken
        run_cli(capsys, "inspect")


# SIGINT as a terminal's process has it, whatever the tests were started by.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from onnxvitq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[int], "subprocess.Popen[bytes]"]]:
    """Starts a quantization that takes a while; the process is ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(samples: int) -> "subprocess.Popen[bytes]":
        for name in ("scratch", "out"):
            (tmp_path / name).mkdir()
        (tmp_path / "out/model_int8.onnx").write_bytes(OLD)
        model = save_attention(tmp_path / "model.onnx", image_attention(16))
        np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).normal(size=(samples, 3, 16, 16)).astype("f4"))
        command = [sys.executable, "-c", START, str(model), "--calib", str(tmp_path / "data.npz")]
        command += ["-o", str(tmp_path / "out/model_int8.onnx"), "--threads", "1", "--objective", "minmax"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path), cwd=tmp_path
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(folder: Path, pattern: str, process: "subprocess.Popen[bytes]") -> None:
    """Until a file appears, which must happen while the process runs."""
    until = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside(
    tmp_path: Path, started: Callable[[int], "subprocess.Popen[bytes]"], number: signal.Signals
) -> None:
    """While it calibrates, which takes long enough to hit; what follows is hit by the driver, at exact moments."""
    process = started(20000)
    wait_for(tmp_path, "scratch/onnxvitq_*/observed.onnx.data", process)
    time.sleep(0.05)  # into the middle of it
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"onnxvitq: interrupted\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model_int8.onnx"]
    assert (tmp_path / "out/model_int8.onnx").read_bytes() == OLD
    assert list((tmp_path / "scratch").iterdir()) == []
