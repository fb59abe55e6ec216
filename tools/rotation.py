"""What a rotation of the residual stream is worth at each width, on two models: the default, with the norms' scales and
shifts folded into the linears as a rotation needs it but by the identity, and with the rotation.

    python tools/rotation.py [--bits w8a8 ...] [--draws 1] [--samples 64] [--folder bench_accuracy]
        [--write [NAME]]

Each draw of calibration samples is fitted with a matrix of its own (the seed is the draw's number), and judged on another
draw, disjoint from it; no test sample is looked at. Needs torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from ablation import sqnr
from bench_models import DRAWS, Bench, bundled, outliers
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq.core.config import QuantConfig

FOLDED = "norms folded alone"
MODELS = {"bundled": bundled, "with outliers": outliers}
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
IDENTITY = "onnxvitq.fit.steps.rotation.rewrite.rotation"  # what the control puts an identity in place of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """dB of the output's SQNR on a draw of samples that nothing was fitted to: as it is, with the norms folded, rotated."""

    bits: str
    model: str
    draw: int
    default: float
    folded: float
    rotated: float


def unturned(width: int, seed: int) -> np.ndarray:
    """The matrix (C, C) of a rotation that turns nothing."""
    del seed
    return np.eye(width)


def measured(model: Bench, bits: str, draw: int, samples: int) -> tuple[float, float, float]:
    """What is reached in dB by the default, by the norms folded alone, and by the rotation."""
    default = QuantConfig(bits=bits, seed=draw, skip=("rotation",))
    rotated = QuantConfig(bits=bits, seed=draw, also=("rotation",))
    reached = sqnr(model, default, samples, draw)
    with mock.patch(IDENTITY, unturned):
        folded = sqnr(model, rotated, samples, draw)
    return reached, folded, sqnr(model, rotated, samples, draw)


def table_of(fits: Sequence[Fit]) -> Table:
    """One row a fit, and the mean of the differences of each width."""
    table = Table(
        columns=columns("bits", "model", "draw", ("default", "{:.2f}"), (FOLDED, "{:+.2f}"), ("rotated", "{:+.2f}"))
    )
    for bits in dict.fromkeys(fit.bits for fit in fits):
        rows = [
            (bits, fit.model, fit.draw, fit.default, fit.folded - fit.default, fit.rotated - fit.default)
            for fit in fits
            if fit.bits == bits
        ]
        means = (float(np.mean([row[at] for row in rows])) for at in (4, 5))
        for row in (*rows, (bits, "mean", None, None, *means)):
            table.add(*row)
    return table


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, "rotation")
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS))
    parser.add_argument("--draws", type=int, choices=range(1, DRAWS + 1), default=1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("bench_accuracy"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    models = {name: build(args.folder, None) for name, build in MODELS.items()}
    fits: list[Fit] = []
    for bits in args.bits:
        for draw in range(args.draws):
            for name, model in models.items():
                default, folded, rotated = measured(model, bits, draw, args.samples)
                fits.append(Fit(bits=bits, model=name, draw=draw, default=default, folded=folded, rotated=rotated))
                print(fits[-1], file=sys.stderr, flush=True)
    about = (
        f"{args.samples} calibration samples; dB of the output's SQNR on {args.samples} others, "
        "differences from the default"
    )
    results = Results(name="rotation", tables=[table_of(fits)], made=provenance(["torch"]), about=[about])
    finish(results, args.write)


if __name__ == "__main__":
    main()
