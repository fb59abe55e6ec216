"""A margin compares equal numbers of samples: none is stated where no other calibrated tool had as many."""

import json
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"
# Apart, because the tool puts the bundled model's folder on the path.
SCRIPT = """
import json, sys
from argparse import Namespace
from pathlib import Path
sys.path.append(sys.argv[1])
from bench_accuracy import margins
args = Namespace(folder=Path(sys.argv[2]), samples=[16, 64], draws=2, limit=None)
print(json.dumps(list(margins("bundled", args))))
"""


def margins(folder: Path, records: dict[str, float]) -> list[str]:
    """The stated margins; ``records``: tool_samples_draw -> SQNR in dB."""
    for name, value in records.items():
        (folder / f"bundled_{name}.json").write_text(json.dumps({"sqnr_db": value}))
    command = [sys.executable, "-c", SCRIPT, str(TOOLS), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found: list[str] = json.loads(ran.stdout)
    return found


def test_only_equal_numbers_of_samples_are_compared(tmp_path: Path) -> None:
    records = {
        "onnxvitq_16_0": 38.0,
        "onnxvitq_64_0": 41.0,
        "onnxvitq_64_1": 42.0,
        "onnxvitq-fast_64_0": 40.0,
        "quantize_static_64_0": 33.0,
        "quantize_dynamic_0_0": 40.5,
    }
    assert margins(tmp_path, records) == [
        "* 64 samples, onnxvitq: +1.00 dB against the best other, quantize_dynamic, per channel.",
        "* 64 samples, onnxvitq --effort fast: -0.50 dB against the best other, quantize_dynamic, per channel.",
    ]
    assert len(margins(tmp_path, {"nncf_16_0": 39.0})) == 3
