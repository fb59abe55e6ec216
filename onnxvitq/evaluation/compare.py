"""Float against quantized, and the quantized model optimised against plain, on the same inputs in one pass."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.runtime.session import Session

PLAIN_SAMPLES = 4  # an unoptimised session runs every product in float and is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Figures of the first output over all samples.

    optimised_vs_plain: norm of the difference between the quantized model with and without graph optimisation, over the
    norm of the output. It is not zero in a deep model: a code that float rounding flips changes the next layer's codes,
    so the difference grows to the size of the quantization error itself, and is read beside it.
    """

    samples: int
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    optimised_vs_plain: float


def compare(
    models: tuple[Path, Path],
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run (float, quantized) over ``feeds``, one held at a time."""
    reference, quantized = (Session(model, threads=threads) for model in models)
    plain = Session(models[1], level="disabled", threads=threads)
    difference, drift, count = OutputDifference(), OutputDifference(), 0
    for feed in feeds:
        output = quantized.run(feed)[0]
        difference.update(reference.run(feed)[0], output)
        if count < PLAIN_SAMPLES:
            drift.update(plain.run(feed)[0], output)
        count += 1
        if progress is not None:
            progress(count)
    return Comparison(
        samples=count,
        sqnr_db=round(difference.sqnr_db, 2),
        cosine=round(difference.cosine, 6),
        top1_agreement=difference.agreement,
        optimised_vs_plain=float(f"{drift.relative:.3g}"),
    )
