"""What a rotation of the residual stream is worth at each width: the default with it and without it, on two models.

    python tools/rotation.py [--bits w8a8 ...] [--draws 1] [--samples 64] [--folder bench_accuracy] [--write]

Each draw of calibration samples is fitted with a matrix of its own (the seed is the draw's number), and judged on another
draw, disjoint from it; no test sample is looked at. Needs torch. With --write the table also goes to
tools/results/rotation.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablation import sqnr
from bench_models import DRAWS, bundled, outliers

from onnxvitq.config import QuantConfig

RESULTS = Path(__file__).parent / "results" / "rotation.md"
MODELS = {"bundled": bundled, "with outliers": outliers}
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
Row = tuple[str, str, int, float, float]  # bits, model, draw, dB without, dB with


def table(rows: list[Row], samples: int) -> str:
    """One row a fit, and the mean of the differences of each width."""
    lines = [
        f"{samples} calibration samples; dB of the output's SQNR on {samples} others",
        "",
        "| bits | model | draw | without rotation | with it | difference |",
        "|---|---|---|---|---|---|",
    ]
    for bits in dict.fromkeys(row[0] for row in rows):
        of_bits = [row for row in rows if row[0] == bits]
        lines += [
            f"| {bits} | {model} | {draw} | {without:.2f} | {rotated:.2f} | {rotated - without:+.2f} |"
            for _, model, draw, without, rotated in of_bits
        ]
        lines.append(f"| {bits} | mean | | | | {np.mean([row[4] - row[3] for row in of_bits]):+.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS))
    parser.add_argument("--draws", type=int, choices=range(1, DRAWS + 1), default=1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("bench_accuracy"))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    models = {name: build(args.folder, None) for name, build in MODELS.items()}
    rows: list[Row] = []
    for bits in args.bits:
        for draw in range(args.draws):
            configs = [
                QuantConfig(bits=bits, seed=draw, skip=("rotation",)),
                QuantConfig(bits=bits, seed=draw, also=("rotation",)),
            ]
            for name, model in models.items():
                judged = model.calibration(args.samples, (draw + 1) % DRAWS)
                reached = [sqnr(model, config, args.samples, judged, draw) for config in configs]
                rows.append((bits, name, draw, *reached))
                print(rows[-1], flush=True)
    text = table(rows, args.samples)
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
