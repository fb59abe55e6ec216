"""Float against quantized, and the quantized model optimised against plain, on the calibration inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxvitq.core.errors import RewriteError, UnsupportedModelError
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.evaluation.tasks.choose import evaluated_output
from onnxvitq.evaluation.tasks.task import Task
from onnxvitq.report.model_records import OutputComparison
from onnxvitq.runtime.session import Session

PLAIN_SAMPLES = 1  # an unoptimised session runs every product in float and is slow
COMPARED = 32  # samples that are run at most: each takes a run of the quantized model
PARITY = 1e-3  # float against float, reassociated: 1e-6 was seen at most; a wrong pass gives 1e-1 and more


def compare(
    models: tuple[Path, Path],
    feeds: Iterable[Mapping[str, np.ndarray]],
    reference: Sequence[FloatArray],
    *,
    threads: int,
    task: Task | None = None,
    progress: Callable[[int], None] | None = None,
) -> OutputComparison:
    """Run the quantized model over the first feeds against the float outputs that the sweep kept.

    Args:
        models: (float as the user gave it, quantized).
        feeds: in the order of the sweep; as many are read as there are references.
        reference: evaluated output of the canonical float graph, a feed each; at most ``COMPARED`` are run.
        threads: of onnxruntime.
        task: says which output is evaluated and how; chosen by the output's shape when None.
        progress: called with the number of samples done.

    Raises:
        UnsupportedModelError: the float model gives another output each time.
        RewriteError: on the first feeds the canonical graph, which everything was fitted to, does not give what the
            user's model gives; or the quantized model gives a NaN or an infinity.
    """
    difference, samples = OutputDifference(task), 0
    first: list[tuple[Mapping[str, np.ndarray], FloatArray, FloatArray]] = []
    session = Session(models[1], threads=threads)
    name = evaluated_output(session.outputs, task)
    for count, (feed, expected) in enumerate(zip(feeds, reference[:COMPARED], strict=False)):
        output = session.run(feed, [name])[0].copy()  # onnxruntime's own would keep its session's memory
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
    drift = _against(plain, name, [(feed, output) for feed, _, output in first])
    del plain
    original = Session(models[0], threads=threads)
    parity = _against(original, name, [(feed, expected) for feed, expected, _ in first])
    if parity.relative > PARITY and _is_random(original, name, first[0][0]):
        raise UnsupportedModelError(str(models[0]), "the float model is random: two runs on one input differ")
    if parity.relative > PARITY:
        problem = f"its canonical form differs by {parity.relative:.1e} of the output's norm, allowed {PARITY:.0e}"
        raise RewriteError(str(models[0]), problem, "please report the model: a graph pass is wrong for it")
    return OutputComparison(
        output=name,
        samples=samples,
        sqnr_db=round(difference.sqnr_db, 2),
        cosine=round(difference.cosine, 6),
        top1_agreement=difference.agreement,
        optimised_vs_plain=float(f"{drift.relative:.3g}"),
    )


def _against(
    model: Session, name: str, outputs: Iterable[tuple[Mapping[str, np.ndarray], FloatArray]]
) -> OutputDifference:
    """Of other outputs, one a feed, from what the model gives."""
    difference = OutputDifference()
    for feed, output in outputs:
        difference.update(model.run(feed, [name])[0], output)
    return difference


def _is_random(model: Session, name: str, feed: Mapping[str, np.ndarray]) -> bool:
    return bool((model.run(feed, [name])[0] != model.run(feed, [name])[0]).any())
