"""What each step is worth: the default without it, on four models, evaluated on samples that nothing was fitted to.

    python tools/ablation.py [--only MODEL ...] [--settings NAME ...] [--samples 64] [--draws 3] [--folder bench_accuracy]
        [--write [NAME]]

Models and data are those of tools/bench_accuracy.py. Each draw of samples calibrates in turn, and the next one evaluates, which
is disjoint; no test sample is looked at. Figures are means over the draws. Of the recogniser's probabilities the logarithms are
compared, as in the fit: three time steps of 8000 make nine tenths of the error of the probabilities themselves. The last column
is the mean over the models: a step that is not below zero there does not help.
Needs torch.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from bench_models import BENCHES, DRAWS, Bench
from command import save_feeds
from running import infer
from tables import Results, Shown, Table, columns, finish, parser_of, provenance

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import StepName
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.graph.query import is_probabilities
from onnxvitq.graph.reading import load_model

SETTINGS = {
    "min-max": QuantConfig(objective="minmax", skip=("bias",)),
    "default": QuantConfig(),
    **{f"without {step}": QuantConfig(skip=(step,)) for step in get_args(StepName) if QuantConfig().runs(step)},
    "with bias": QuantConfig(also=("bias",)),
    "with rotation": QuantConfig(also=("rotation",)),
    "everything kept": QuantConfig(acceptance="always"),
    "effort fast": QuantConfig(effort="fast"),
    "effort best": QuantConfig(effort="best"),
}


def sqnr(model: Bench, config: QuantConfig, samples: int, fitted: int) -> float:
    """Output SQNR in dB on a draw of samples after a fit to the one before it; of probabilities that of their logarithms."""
    others = model.calibration(samples, (fitted + 1) % DRAWS)
    with tempfile.TemporaryDirectory() as name:
        data, output = Path(name) / "calibration.npz", Path(name) / "int8.onnx"
        save_feeds(data, model.calibration(samples, fitted))
        quantize(model.model, data, output, config)
        probabilities = is_probabilities(load_model(model.model).graph.outputs[0])
        difference = OutputDifference(probabilities=probabilities)
        difference.update(infer(model.model, others), infer(output, others))
        return difference.sqnr_db


def table_of(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a setting: dB a model for the default and min-max, differences from the default for the others."""
    names, default = list(next(iter(rows.values()))), rows["default"]
    table = Table(columns=columns("", *((name, "{:.2f}") for name in (*names, "mean"))))
    for setting, row in rows.items():
        values = [row[name] for name in names]
        form = "{:.2f}"
        if setting not in {"default", "min-max"}:
            values, form = [row[name] - default[name] for name in names], "{:+.2f}"
        table.add(setting, *(Shown(value, form) for value in (*values, float(np.mean(values)))))
    return table


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, "ablation")
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--draws", type=int, choices=range(1, DRAWS + 1), default=DRAWS)
    parser.add_argument("--folder", type=Path, default=Path("bench_accuracy"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    models = {name: BENCHES[name](args.folder, None) for name in args.only}
    rows: dict[str, dict[str, float]] = {}
    for setting in dict.fromkeys(("default", *args.settings)):
        rows[setting] = {
            name: float(np.mean([sqnr(model, SETTINGS[setting], args.samples, draw) for draw in range(args.draws)]))
            for name, model in models.items()
        }
        print(setting, {name: round(value, 2) for name, value in rows[setting].items()}, file=sys.stderr, flush=True)
    about = (
        f"W8A8, {args.samples} calibration samples; dB of the output's SQNR on {args.samples} others, mean over {args.draws} "
        "draws; of the recogniser's probabilities the logarithms; differences from the default"
    )
    results = Results(name="ablation", tables=[table_of(rows)], made=provenance(["torch"]), about=[about])
    finish(results, args.write)


if __name__ == "__main__":
    main()
