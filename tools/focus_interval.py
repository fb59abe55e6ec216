"""Whether the lower end b1 of AIQViT's focusing quantizer pays: the error of A V for the best [0, b2] against [b1, b2].

    python tools/focus_interval.py [--models bundled outliers encoder] [--bits 8 4 3] [--samples 32]
        [--write [NAME]]

The quantizer sets what is below b1 to b1 and what is above b2 to b2 and is uniform between them: code 0 stands for b1. With
b1 > 0 that is no pair of QuantizeLinear and DequantizeLinear: A - b1 has to be quantized, and b1 times the column sums of V
added to the product, an addition over an (H, T, D) tensor at run time. Both intervals are searched on even samples by the
error of A V against the float one's, and judged on odd ones; V stays float. One quantizer an attention, as it is written,
heads share it. "divided late" is what is written at few bits: the rows of A over their largest value are quantized, and the
product is divided by the sums of the codes' rows, so that their sum is one again without b1.
Models and calibration data are those of tools/bench_accuracy.py.
"""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_models import BENCHES, Bench
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.layers import Attention
from onnxvitq.core.tensors import FloatArray
from onnxvitq.data.source import open_source
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import save_model, to_proto
from onnxvitq.numerics.decibels import gain_db
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.session import Session

UPPER = (*(step / 10 for step in range(1, 10)), 1.0)  # b2 over the largest probability
LOWER = (0.0, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # b1 over b2
Interval = tuple[float, float]


def focused(a: FloatArray, interval: Interval, bits: int) -> FloatArray:
    """Fake-quantized: the borders outside the interval, uniform inside."""
    low, high = interval
    step = (high - low) / (2**bits - 1)
    return (low + step * np.rint((np.clip(a, low, high) - low) / step)).astype(np.float32)


def square_error(a: FloatArray, v: FloatArray, interval: Interval, bits: int, *, late: bool) -> float:
    """Of A V, summed over all samples."""
    codes = focused(a / a.max(axis=-1, keepdims=True) if late else a, interval, bits)
    sums = np.maximum(codes.sum(axis=-1, keepdims=True), 1e-9) if late else np.float32(1)
    return float(np.square(codes @ v / sums - a @ v, dtype=np.float64).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """b1 over b2 as chosen on even samples, and what b1 > 0 takes off the error on the odd ones in dB; 0 where b1 is 0."""

    share: float
    db: float


def gain(a: FloatArray, v: FloatArray, bits: int, *, late: bool) -> Gain:
    """Of A (N, H, T, T) and V (N, H, T, D), with or without late division."""
    largest = 1.0 if late else float(a[::2].max())
    tried = [(low * high * largest, high * largest) for low, high in itertools.product(LOWER, UPPER)]
    errors = {one: square_error(a[::2], v[::2], one, bits, late=late) for one in tried}
    zero = min((one for one in tried if one[0] == 0), key=errors.__getitem__)
    best = min(tried, key=errors.__getitem__)
    if best[0] == 0:
        return Gain(share=0.0, db=0.0)
    without, left = (square_error(a[1::2], v[1::2], one, bits, late=late) for one in (zero, best))
    return Gain(share=best[0] / best[1], db=gain_db(without, left))


def operands(model: Bench, samples: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """A (N, H, T, T) and V (N, H, T, D) of every attention."""
    loaded = load_model(model.model)
    bring_to_canonical_form(loaded, 1)
    attentions = [one for one in find_blocks(loaded.graph, str(model.model)).attentions if one.probs_first]
    names = [name for one in attentions for name in _tensors(one)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(to_proto(with_outputs(loaded.graph, names), {}), path)
        session = Session(path, threads=1)
        feeds = open_source(model.calibration(samples, 0), loaded.inputs, None, limit=None)
        found = [session.run(feed, names) for feed in feeds]
    for index in range(len(attentions)):
        yield tuple(np.concatenate([one[2 * index + side] for one in found]) for side in (0, 1))  # type: ignore[misc]


def _tensors(attention: Attention) -> tuple[str, str]:
    return attention.probs, attention.value


def _summary(gains: list[Gain]) -> tuple[int, float]:
    """How many chose b1 > 0, and the mean gain in dB."""
    return sum(one.share > 0 for one in gains), float(np.mean([one.db for one in gains]))


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, "focus_interval")
    parser.add_argument("--models", nargs="+", default=["bundled", "outliers", "encoder"], choices=list(BENCHES))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3])
    parser.add_argument("--samples", type=int, default=32)
    args = parser.parse_args()
    table = Table(
        columns=columns(
            *("model", "bits", "attentions", "b1 > 0 chosen", ("mean dB", "{:.2f}"), "divided late: chosen"),
            *(("mean dB", "{:.2f}"), ("largest dB", "{:.2f}"), ("b1 / b2 up to", "{:.3f}")),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model = BENCHES[name](Path(folder), 1)
            pairs = list(operands(model, args.samples))
            for bits in args.bits:
                alone = [gain(a, v, bits, late=False) for a, v in pairs]
                late = [gain(a, v, bits, late=True) for a, v in pairs]
                largest = (max(one.db for one in late), max(one.share for one in late))
                table.add(model.title, bits, len(pairs), *_summary(alone), *_summary(late), *largest)
    about = f"error of A V on held-out samples, {args.samples} calibration samples; dB that b1 > 0 gains over b1 = 0"
    results = Results(name="focus_interval", tables=[table], made=provenance(["torch"]), about=[about])
    finish(results, args.write)


if __name__ == "__main__":
    main()
