"""Time by operator: worked by hand on a written profile, and read from a real one."""

import json
from pathlib import Path

import numpy as np
import onnx
from textgraph import model_of

from onnxvitq.runtime.profile import OperatorTime, operator_times
from onnxvitq.runtime.session import Session


def event(name: str, start: int, duration: int, op: str = "") -> dict[str, object]:
    kind = "Node" if op else "Session"
    return {"cat": kind, "name": name, "ts": start, "dur": duration, "args": {"op_name": op} if op else {}}


def test_medians_of_sums_without_the_warm_up(tmp_path: Path) -> None:
    events = [event("session_initialization", 0, 50)]
    for run, (add, first, second) in enumerate([(900, 900, 900), (10, 100, 200), (30, 300, 200), (20, 100, 100)]):
        start = 10_000 * (run + 1)
        events += [
            event("a_kernel_time", start + 1, add, "Add"),
            event("a_fence_before", start + 1, 5000, "Add"),
            event("g_kernel_time", start + 2, first, "QGemm"),
            event("h_kernel_time", start + 3, second, "QGemm"),
            event("model_run", start, 5000),
        ]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    times = operator_times(tmp_path / "profile.json", 1)
    assert list(times) == ["QGemm", "Add"]  # the longest first
    assert times == {"QGemm": OperatorTime(ms=0.3, nodes=2), "Add": OperatorTime(ms=0.02, nodes=1)}


def test_a_session_profiles_itself(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,4] y) <float[4,4] W> { p = MatMul(x, W) r = Tanh(p) y = Tanh(r) }"
    onnx.save(model_of(text), tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", threads=1, profile=tmp_path)
    for _ in range(3):
        session.run({"x": np.eye(4, dtype=np.float32)})
    written = session.end_profile()
    assert written.parent == tmp_path
    assert {name: time.nodes for name, time in operator_times(written, 2).items()} == {"MatMul": 1, "Tanh": 2}
