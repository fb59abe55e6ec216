"""Plain min-max quantization of a float model, and how far two models are from it: nothing here is onnxvitq's own.

Every product of the float graph as it stands (MatMul, Gemm, pointwise and patch convolutions) reads what 8 bits leave of its
operands: activations by the range seen on the calibration samples, weights by the largest of each output channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from edit_evaluator import reference_model

Feed = Mapping[str, np.ndarray]
MARGIN_DB = 1.0  # below min-max that an output may be
LOST_DB = 10.0  # of min-max, below which an output is lost to it: how far is a matter of luck
PLENTY_DB = 55.0  # of min-max, beyond which a difference is rounding in float
CHANCE = 0.02  # of integers, that may differ more often than by min-max


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputQuality:
    """How near one output is to the float model's.

    Attributes:
        name: of the output.
        got: SQNR in dB of floats, the equal share of others.
        wanted: the same of plain min-max quantization.
        bad: whether ``got`` is worse than is allowed.
    """

    name: str
    got: float
    wanted: float
    bad: bool


def session_of(model: onnx.ModelProto | str, *, optimised: bool = True) -> onnxruntime.InferenceSession:
    """A silent session of one thread."""
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def outputs_of(
    model: onnx.ModelProto | str, feeds: Sequence[Feed], *, optimised: bool = True
) -> list[list[np.ndarray]]:
    """Outputs of each feed; a sequence is its tensors, one after another in one row."""
    session = session_of(model, optimised=optimised)
    return [
        [
            np.concatenate([part.ravel() for part in one]) if isinstance(one, list) else one
            for one in session.run(None, feed)
        ]
        for feed in feeds
    ]


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    """Of all values at once, in dB; NaN where shapes differ, or where one is finite and the other is not the same."""
    if exact.shape != found.shape:
        return np.nan
    a, b = exact.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return np.nan
    largest = np.abs(a[finite]).max(initial=0.0) or 1.0
    noise, signal = (float((part**2).sum()) for part in ((a[finite] - b[finite]) / largest, a[finite] / largest))
    if noise == 0:
        return np.inf
    return float(10 * np.log10(signal / noise)) if signal > 0 else -np.inf


def assess(
    names: Sequence[str], exact: list[list[np.ndarray]], got: list[list[np.ndarray]], plain: list[list[np.ndarray]]
) -> list[OutputQuality]:
    """Each output of some samples against the float model's, beside what plain quantization gives."""
    result = []
    for place, name in enumerate(names):
        wanted, ours, theirs = ([run[place] for run in runs] for runs in (exact, got, plain))
        level, reference = _level(wanted, ours), _level(wanted, theirs)
        if wanted[0].dtype.kind == "f":
            least = -np.inf if reference < LOST_DB else min(reference, PLENTY_DB) - MARGIN_DB
        else:
            size = sum(one.size for one in wanted)
            least = reference - max(CHANCE, 1.01 / max(size, 1))  # one may differ
        result.append(OutputQuality(name=name, got=level, wanted=reference, bad=not level >= least))
    return result


def _level(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """SQNR in dB of floats, the equal share of others; NaN where shapes or types differ."""
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(wanted, found, strict=True)):
        return np.nan
    a, b = (np.concatenate([one.ravel() for one in runs]) for runs in (wanted, found))
    if a.dtype.kind == "f":
        return sqnr(a, b)
    return float(np.mean(a == b)) if a.size else 1.0


def interface(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Names and element types of inputs and outputs, in order; of inputs the shapes, too."""
    inputs = [(one.name, one.type.SerializeToString().hex()) for one in model.graph.input]
    kinds = [
        (one.name, str(one.type.tensor_type.elem_type or one.type.sequence_type.elem_type.tensor_type.elem_type))
        for one in model.graph.output
    ]
    return inputs + kinds


def plain_quantization(model: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """The model with what each of its products reads in 8 bits, of an opset that has quantization by channel."""
    version = next(one.version for one in model.opset_import if not one.domain)
    recent = onnx.version_converter.convert_version(model, 13) if version < 13 else model
    return reference_model(recent, [dict(feed) for feed in feeds])
