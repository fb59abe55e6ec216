"""Float against quantized, and the quantized model optimised against plain, on the calibration inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import RewriteError, UnsupportedModelError
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.runtime.session import Session

PLAIN_SAMPLES = 1  # an unoptimised session runs every product in float and is slow
COMPARED = 32  # samples that are run at most: each takes a run of the quantized model
PARITY = 1e-3  # float against float, reassociated: 1e-6 was seen at most; a wrong pass gives 1e-1 and more


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Figures of the first output over the samples (those that fill up the last static batch included).

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
    reference: Sequence[FloatArray],
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run the quantized model over the first feeds against the float outputs that the sweep kept.

    Args:
        models: (float as the user gave it, quantized).
        feeds: in the order of the sweep; as many are read as there are references.
        reference: first output of the canonical float graph, a feed each; at most ``COMPARED`` are run.
        threads: of onnxruntime.
        progress: called with the number of samples done.

    Raises:
        UnsupportedModelError: the float model gives another output each time.
        RewriteError: on the first feeds the canonical graph, which everything was fitted to, does not give what the
            user's model gives; or the quantized model gives a NaN or an infinity.
    """
    difference, samples = OutputDifference(), 0
    first: list[tuple[Mapping[str, np.ndarray], FloatArray, FloatArray]] = []
    session = Session(models[1], threads=threads)
    for count, (feed, expected) in enumerate(zip(feeds, reference[:COMPARED], strict=False)):
        output = session.run(feed)[0].copy()  # onnxruntime's own would keep its session's memory
        if not np.isfinite(output).all():
            problem = f"quantized, it gives a NaN or an infinity at calibration sample {count}"
            raise RewriteError(str(models[0]), problem, "please report the model")
        difference.update(expected, output)
        if count < PLAIN_SAMPLES:
            first.append((feed, expected, output))
        samples += len(next(iter(feed.values())))
        if progress is not None:
            progress(count + 1)
    del session  # one is open at a time: each holds the weights, the float one in float
    plain = Session(models[1], level="disabled", threads=threads)
    drift = _against(plain, [(feed, output) for feed, _, output in first])
    del plain
    original = Session(models[0], threads=threads)
    parity = _against(original, [(feed, expected) for feed, expected, _ in first])
    if parity.relative > PARITY and _is_random(original, first[0][0]):
        raise UnsupportedModelError(str(models[0]), "the float model is random: two runs on one input differ")
    if parity.relative > PARITY:
        problem = f"its canonical form differs by {parity.relative:.1e} of the output's norm, allowed {PARITY:.0e}"
        raise RewriteError(str(models[0]), problem, "please report the model: a graph pass is wrong for it")
    return Comparison(
        samples=samples,
        sqnr_db=round(difference.sqnr_db, 2),
        cosine=round(difference.cosine, 6),
        top1_agreement=difference.agreement,
        optimised_vs_plain=float(f"{drift.relative:.3g}"),
    )


def _against(model: Session, outputs: Iterable[tuple[Mapping[str, np.ndarray], FloatArray]]) -> OutputDifference:
    """Of other outputs, one a feed, from what the model gives."""
    difference = OutputDifference()
    for feed, output in outputs:
        difference.update(model.run(feed)[0], output)
    return difference


def _is_random(model: Session, feed: Mapping[str, np.ndarray]) -> bool:
    return bool((model.run(feed)[0] != model.run(feed)[0]).any())
