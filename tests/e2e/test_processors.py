"""The written model on processors that add two products of codes in 16 bits: the same outputs as in plain arithmetic.

Here, and on an emulated Haswell (AVX2, no VNNI) where Debian's qemu-user is installed.
"""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import TargetName
from onnxvitq.runtime.session import Session

pytestmark = pytest.mark.slow
QEMU = shutil.which("qemu-x86_64") if platform.machine() == "x86_64" else None
PROCESSORS = ("host", "Haswell") if QEMU else ("host",)
TARGETS: tuple[TargetName, ...] = ("auto", "x86-avx2", "x86-vnni")
ROUNDING = 1e-3  # of the norm of the outputs

FASHION = Path(__file__).parents[2] / "models" / "fashion_vit"
# Inputs and weights at their largest: every pair of products is 2 * 255 * 127 where nothing limits it.
LARGE = (
    "(float[N,8,32] x) => (float[N,8,32] y) <float[32,32] Wq, float[32,32] Wk, float[32,32] Wv, float[32,32] Wo>"
    "{ q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) kt = Transpose<perm = [0, 2, 1]>(k)"
    " scores = MatMul(q, kt) probs = Softmax<axis = -1>(scores) context = MatMul(probs, v) y = MatMul(context, Wo) }"
)
# Runs on the emulated processor: the optimised session of every model, onnxruntime and numpy only.
PROGRAM = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for model in sys.argv[1:]:
    session = onnxruntime.InferenceSession(model, options)
    feed = {session.get_inputs()[0].name: np.load(model + ".feed.npy")}
    np.save(model + ".Haswell.npy", session.run(None, feed)[0])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Of one model: in plain arithmetic, and of its integer kernels by processor."""

    plain: np.ndarray
    integer: dict[str, np.ndarray]

    def difference(self, processor: str) -> float:
        """Of the middle sample, from plain arithmetic: in some a code lies on a border and goes the other way."""
        norms = [
            np.linalg.norm(one.reshape(len(one), -1), axis=1)
            for one in (self.integer[processor] - self.plain, self.plain)
        ]
        return float(np.median(norms[0] / norms[1]))


def large_model(path: Path) -> np.ndarray:
    """A model that saturates wherever it may, saved; samples for it."""
    sizes = {"Wq": 0.01, "Wk": 0.01, "Wv": 1.0, "Wo": 1.0}
    onnx.save(
        model_of(LARGE, weights={name: np.full((32, 32), size, np.float32) for name, size in sizes.items()}), path
    )
    return np.random.default_rng(0).uniform(0.9, 1.0, (8, 8, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outputs]:
    """(model, target) -> outputs."""
    folder = tmp_path_factory.mktemp("processors")
    large = large_model(folder / "large.onnx")
    images = np.load(FASHION / "test.npz")["x"][:8, None].astype(np.float32) / 128 - 1
    cases: dict[str, tuple[Path, Any, np.ndarray]] = {
        "bundled": (FASHION / "model.onnx", FASHION / "calib", images),
        "large": (folder / "large.onnx", large, large),
    }
    written: dict[tuple[str, str], Path] = {}
    for name, (model, data, feed) in cases.items():
        for target in TARGETS:
            path = written[name, target] = folder / f"{name}_{target}.onnx"
            config = QuantConfig(objective="minmax", skip=("bias",), num_samples=8, target=target, threads=1)
            quantize(model, data, path, config)
            np.save(f"{path}.feed.npy", feed)
    if QEMU:
        command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", PROGRAM, *map(str, written.values())]
        subprocess.run(command, check=True, capture_output=True)
    return {case: outputs_of(path) for case, path in written.items()}


def outputs_of(path: Path) -> Outputs:
    feed = np.load(f"{path}.feed.npy")
    sessions = {level: Session(path, level=level, threads=1) for level in ("disabled", "all")}
    plain, host = (one.run({one.input_specs[0].name: feed})[0] for one in sessions.values())
    emulated = {"Haswell": np.load(f"{path}.Haswell.npy")} if QEMU else {}
    return Outputs(plain=plain, integer={"host": host, **emulated})


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("target", ["auto", "x86-avx2"])
@pytest.mark.parametrize("model", ["bundled", "large"])
def test_outputs_are_those_of_plain_arithmetic(
    outputs: dict[tuple[str, str], Outputs], model: str, target: str, processor: str
) -> None:
    assert outputs[model, target].difference(processor) <= ROUNDING


@pytest.mark.parametrize("target", ["auto", "x86-avx2"])
@pytest.mark.parametrize("model", ["bundled", "large"])
def test_every_processor_computes_the_same(outputs: dict[tuple[str, str], Outputs], model: str, target: str) -> None:
    integer = outputs[model, target].integer
    assert set(integer) == set(PROCESSORS)
    largest = np.abs(integer["host"]).max()
    assert all(
        np.abs(one - integer["host"]).max() <= 1e-5 * largest for one in integer.values()
    )  # float operators between


def test_the_control_saturates_where_it_may(outputs: dict[tuple[str, str], Outputs]) -> None:
    """Or the test above would show nothing: written for VNNI the model is right here or there, and wrong on a Haswell."""
    wrong = {
        name: outputs[name, "x86-vnni"].difference("Haswell") > 10 * ROUNDING for name in ("bundled", "large") if QEMU
    }
    assert wrong == ({"bundled": True, "large": True} if QEMU else {})
