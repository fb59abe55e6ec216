"""What a rotation of the residual stream is worth at each width, on two models: the default, with the norms' scales and
shifts folded into the linears as a rotation needs it but by the identity, and with the rotation.

    python tools/rotation.py [--bits w8a8 ...] [--draws 1] [--samples 64] [--folder bench_accuracy] [--write]

Each draw of calibration samples is fitted with a matrix of its own (the seed is the draw's number), and judged on another
draw, disjoint from it; no test sample is looked at. Needs torch. With --write the table also goes to
tools/results/rotation.md.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablation import sqnr
from bench_models import DRAWS, bundled, outliers

from onnxvitq.core.config import QuantConfig

RESULTS = Path(__file__).parent / "results" / "rotation.md"
MODELS = {"bundled": bundled, "with outliers": outliers}
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
IDENTITY = "onnxvitq.fit.steps.rotation.rewrite.rotation"  # what the control puts an identity in place of
Row = tuple[str, str, int, float, float, float]  # bits, model, draw, dB without, dB with the norms folded, dB rotated


def unturned(width: int, seed: int) -> np.ndarray:
    """The matrix (C, C) of a rotation that turns nothing."""
    del seed
    return np.eye(width)


def table(rows: list[Row], samples: int) -> str:
    """One row a fit, and the mean of the differences of each width."""
    lines = [
        f"{samples} calibration samples; dB of the output's SQNR on {samples} others, differences from the default",
        "",
        "| bits | model | draw | default | norms folded alone | rotated |",
        "|---|---|---|---|---|---|",
    ]
    for bits in dict.fromkeys(row[0] for row in rows):
        of_bits = [row for row in rows if row[0] == bits]
        lines += [
            f"| {bits} | {model} | {draw} | {default:.2f} | {folded - default:+.2f} | {rotated - default:+.2f} |"
            for _, model, draw, default, folded, rotated in of_bits
        ]
        folded, rotated = (float(np.mean([row[at] - row[3] for row in of_bits])) for at in (4, 5))
        lines.append(f"| {bits} | mean | | | {folded:+.2f} | {rotated:+.2f} |")
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
            default, rotated = (QuantConfig(bits=bits, seed=draw, **{key: ("rotation",)}) for key in ("skip", "also"))
            for name, model in models.items():
                reached = [sqnr(model, default, args.samples, draw)]
                with mock.patch(IDENTITY, unturned):
                    reached.append(sqnr(model, rotated, args.samples, draw))
                reached.append(sqnr(model, rotated, args.samples, draw))
                rows.append((bits, name, draw, reached[0], reached[1], reached[2]))
                print(rows[-1], flush=True)
    text = table(rows, args.samples)
    print(text)
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
