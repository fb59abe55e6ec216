"""Evaluate one edited graph: its canonical form and its integer model against the float graph itself, in plain onnxruntime.

What the integer model may lose is measured without onnxvitq's matcher: Q/DQ pairs by min-max around every product and
pointwise or patch convolution of the float graph as it stands. A graph that selects rows by their scores is not held to
that: its output jumps where two scores are close.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graph_edits import OTHER_BATCH, Edited, Feed, open_session, random_feeds
from onnx import helper, numpy_helper

from onnxvitq.api import quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import OnnxVitqError
from onnxvitq.graph.canonical import PASSES, canonicalise, run_pass
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import to_proto

SAMPLES, BATCH = 4, 1  # onnxvitq calibrates a sample at a time
MORE, OTHERS = 5, 3  # feeds to compare on besides: the noise of a few small outputs is a matter of luck
CANONICAL = 1e-4  # of the largest output: float32 sums in another order
ILL_CONDITIONED = 10  # times what noise of 1e-6 in the input and the weights does
GAP_DB = 6.0  # the written model may be worse than the reference by
PLENTY_DB = 50.0  # of the reference beyond which it measures nothing any more
SELECTS = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression"})  # rounding may pick another row of equal worth
MULTIPLIES = frozenset({"MatMul", "Gemm", "Conv", "Einsum"})

# As the reference: min-max, and weights of the full range.
CONFIG = QuantConfig(objective="minmax", target="x86-vnni", threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result for one graph.

    Attributes:
        problems: what is wrong with the result; empty where nothing is.
        refusal: why the graph was not quantized; "" where it was.
        canonical: relative difference of the canonical form's outputs.
        sqnr: of the written model, in dB.
        reference: SQNR of plain quantization, in dB.
        selects: whether the graph selects rows by their scores; then nothing is asked of ``sqnr``.
    """

    problems: tuple[str, ...] = ()
    refusal: str = ""
    canonical: float = 0.0
    sqnr: float = np.inf
    reference: float = np.inf
    selects: bool = False

    @property
    def gap(self) -> float:
        """By how much the reference is better, in dB."""
        if self.selects:
            return 0.0
        return float(min(self.reference, PLENTY_DB) - min(self.sqnr, PLENTY_DB))


def evaluate_edit(edited: Edited, folder: Path) -> Verdict:
    """Canonicalise and quantize a graph; hold both against what onnxruntime makes of it as it stands."""
    path = folder / "edited.onnx"
    onnx.save(edited.proto, path)
    feeds = random_feeds(edited.proto, SAMPLES, BATCH, 2)
    more = random_feeds(edited.proto, MORE, BATCH, 5)
    other = random_feeds(edited.proto, OTHERS, OTHER_BATCH, 3) if edited.dynamic else []
    runs = [*feeds, *more, *other]
    truth = _run(edited.proto, runs)
    canonical, problems = 0.0, []
    try:
        canonical = _canonical_difference(
            path, edited.proto, [*feeds[:1], *other[:1]], [truth[0], *truth[SAMPLES + MORE :][:1]]
        )
        if canonical > CANONICAL:
            problems.append(f"canonical form differs by {canonical:.1e}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = quantize(path, feeds, folder / "int8.onnx", CONFIG)
    except OnnxVitqError as error:
        return Verdict(problems=tuple(problems), refusal=_one_line(error), canonical=canonical)
    except Exception as error:  # noqa: BLE001 - any other error is a defect, which the fuzz looks for
        return Verdict(problems=(*problems, f"crashed: {_describe(error)}"), canonical=canonical)
    if not result.report.to_dict()["audit_passed"]:
        problems.append("a planned layer runs in float")
    try:
        onnx.checker.check_model(result.output, full_check=True)
        written = onnx.load(result.output)
        both = [_run(written, runs), _run(written, runs, optimised=True)]
    except Exception as error:  # noqa: BLE001 - the checker's and onnxruntime's errors
        return Verdict(problems=(*problems, f"the written model fails: {_describe(error)}"), canonical=canonical)
    approximations = _run(reference_model(edited.proto, feeds), runs)
    parts = [slice(0, SAMPLES + MORE)]
    if other and not mixes_samples(edited.proto, other[0], truth[SAMPLES + MORE]):
        parts.append(slice(SAMPLES + MORE, None))
    pairs = [
        pair
        for outputs, part in itertools.product(both, parts)
        for pair in _levels(truth[part], outputs[part], approximations[part])
    ]
    level, reference = max(pairs, key=lambda pair: min(pair[1], PLENTY_DB) - min(pair[0], PLENTY_DB))
    selects = any(node.op_type in SELECTS for node in edited.proto.graph.node)
    verdict = Verdict(problems=tuple(problems), canonical=canonical, sqnr=level, reference=reference, selects=selects)
    if verdict.gap <= GAP_DB:
        return verdict
    return replace(verdict, problems=(*problems, f"{level:.1f} dB, the reference quantization {reference:.1f} dB"))


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _one_line(error: OnnxVitqError) -> str:
    assert "\n" not in str(error), error
    return str(error).split(".onnx: ", 1)[-1]


def _run(proto: onnx.ModelProto, feeds: Sequence[Feed], *, optimised: bool = False) -> list[list[np.ndarray]]:
    session = open_session(proto, optimised=optimised)
    return [session.run(None, feed) for feed in feeds]


def mixes_samples(proto: onnx.ModelProto, feed: Feed, truth: Sequence[np.ndarray]) -> bool:
    """Whether a sample's outputs depend on the others in its batch: then ranges measured alone say nothing about it."""
    alone = _run(proto, [{name: value[:1] for name, value in feed.items()}])[0]
    return any(
        one.ndim == 0 or len(one) != 1 or difference([[one]], [[whole[:1]]]) > CANONICAL
        for one, whole in zip(alone, truth, strict=True)
    )


# ------------------------------------------------------------------------------------------------------ canonical form


def _canonical_difference(
    path: Path, proto: onnx.ModelProto, feeds: Sequence[Feed], truth: Sequence[list[np.ndarray]]
) -> float:
    """Largest difference by the largest output; 0 where the graph itself cannot tell its own rounding from it."""
    model = load_model(path)
    canonicalise(model.graph)
    worst = difference(truth, _run(to_proto(model.graph, {}), feeds))
    if worst <= CANONICAL or worst > ILL_CONDITIONED * conditioning(proto, feeds, truth):
        return worst
    return 0.0


def difference(truth: Sequence[list[np.ndarray]], found: Sequence[list[np.ndarray]]) -> float:
    """Largest difference of any output, by the largest value of that output; infinity for another shape or a NaN."""
    worst = 0.0
    for one, two in zip(itertools.chain(*truth), itertools.chain(*found), strict=True):
        if one.shape != two.shape or one.dtype != two.dtype:
            return np.inf
        if one.size and one.dtype == np.float32:
            relative = np.abs(one.astype(np.float64) - two).max() / max(np.abs(one).max(), 1e-30)
            worst = max(worst, float(relative) if np.isfinite(relative) else np.inf)
    return worst


def conditioning(proto: onnx.ModelProto, feeds: Sequence[Feed], truth: Sequence[list[np.ndarray]]) -> float:
    """What noise of 1e-6, relative, in the inputs and the weights does to the outputs."""
    rng = np.random.default_rng(4)

    def noisy(value: np.ndarray) -> np.ndarray:
        return (value * (1 + 1e-6 * rng.normal(size=value.shape))).astype(value.dtype)

    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for one in copy.graph.initializer:
        value = numpy_helper.to_array(one)
        if value.dtype == np.float32 and value.size > 1:
            one.CopyFrom(numpy_helper.from_array(noisy(value), one.name))
    return difference(truth, _run(copy, [{name: noisy(value) for name, value in feed.items()} for feed in feeds]))


def blame(edited: Edited, folder: Path) -> str:
    """Name of the pass after which the graph no longer computes what it did; "" when none."""
    path = folder / "blamed.onnx"
    onnx.save(edited.proto, path)
    feeds = random_feeds(edited.proto, 1, OTHER_BATCH if edited.dynamic else BATCH, 3)
    truth, model = _run(edited.proto, feeds), load_model(path)
    for name, run in [("load_model", None), *((one.__name__, one) for _ in range(3) for one in PASSES)]:
        if run is not None and not run_pass(model.graph, run):
            continue
        if difference(truth, _run(to_proto(model.graph, {}), feeds)) > CANONICAL:
            return name
    return ""


# ----------------------------------------------------------------------------------------------------------- reference


def _levels(
    truth: Sequence[list[np.ndarray]],
    outputs: Sequence[list[np.ndarray]],
    approximations: Sequence[list[np.ndarray]],
) -> Iterator[tuple[float, float]]:
    """(SQNR of the written model, of the reference) of every float output: the median over the runs.

    A selection (TopK) goes another way at the least noise, in one model or the other; a wrong graph is wrong in each run.
    """
    for position, first in enumerate(truth[0]):
        if first.dtype == np.float32 and first.size:
            ours, theirs = (
                [sqnr(wanted[position], one[position]) for wanted, one in zip(truth, found, strict=True)]
                for found in (outputs, approximations)
            )
            yield float(np.median(ours)), float(np.median(theirs))


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB; minus infinity for another shape or a NaN."""
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return -np.inf
    exact = wanted.astype(np.float64)
    noise, signal = float(((exact - found) ** 2).sum()), float((exact**2).sum())
    return np.inf if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise))


def reference_model(proto: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """The graph with what each of its products reads in 8 bits: activations by min-max, weights by channel."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(proto.SerializeToString())
    read = [
        (node, index)
        for node in copy.graph.node
        if node.op_type in MULTIPLIES and _is_product(node, proto)
        for index, _ in zip(range(2), node.input, strict=False)
    ]
    fixed = _constants(proto)
    values = _observe(proto, {node.input[index] for node, index in read}, feeds)
    done: dict[tuple[str, int | None], tuple[str, list[onnx.NodeProto]]] = {}
    for node, index in read:
        name = node.input[index]
        axis = _channels(node, values[name][0]) if index == 1 and name in fixed else None
        if values[name][0].dtype != np.float32 or not values[name][0].size:
            continue
        if (name, axis) not in done:
            done[name, axis] = _pair(copy, name, axis, values[name])
        node.input[index] = done[name, axis][0]
    pairs: dict[str, list[onnx.NodeProto]] = {}
    for (name, _), (_, nodes) in done.items():
        pairs.setdefault(name, []).extend(nodes)
    made = {name for node in copy.graph.node for name in node.output}
    order = [pair for name, nodes in pairs.items() if name not in made for pair in nodes]
    for node in copy.graph.node:
        order.extend([node, *(pair for name in node.output for pair in pairs.get(name, ()))])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _is_product(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    """Whether integer kernels can run it: of the convolutions, pointwise ones and those that cut patches."""
    if node.op_type != "Conv":
        return True
    found = _attributes(node)
    shapes = {one.name: list(one.dims) for one in proto.graph.initializer}
    kernel = found.get("kernel_shape") or shapes.get(node.input[1], [0, 0, 0, 0])[2:]
    strides = found.get("strides", [1] * len(kernel))
    return found.get("group", 1) == 1 and (set(kernel) == {1} or list(kernel) == list(strides))


def _constants(proto: onnx.ModelProto) -> set[str]:
    """Names of everything that no input reaches."""
    found = {one.name for one in proto.graph.initializer}
    for node in proto.graph.node:
        if all(not name or name in found for name in node.input) and not node.op_type.startswith("Random"):
            found.update(node.output)
    return found


def _observe(proto: onnx.ModelProto, names: set[str], feeds: Sequence[Feed]) -> dict[str, list[np.ndarray]]:
    """The values of tensors over the feeds; of those stored in the graph, once."""
    values = {one.name: [numpy_helper.to_array(one)] for one in proto.graph.initializer if one.name in names}
    values.update({one.name: [feed[one.name] for feed in feeds] for one in proto.graph.input if one.name in names})
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    wanted = sorted(names - set(values))
    if not wanted:
        return values
    del copy.graph.output[:]
    copy.graph.output.extend([onnx.ValueInfoProto(name=name) for name in wanted])
    session = open_session(copy)
    runs = [session.run(wanted, feed) for feed in feeds]
    return values | {name: [run[place] for run in runs] for place, name in enumerate(wanted)}


def _channels(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """The axis of a weight that its outputs go along; None for one scale."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if _attributes(node).get("transB") else 1
    return weight.ndim - 1 if node.op_type == "MatMul" and weight.ndim == 2 else None


def _pair(
    proto: onnx.ModelProto, name: str, axis: int | None, values: Sequence[np.ndarray]
) -> tuple[str, list[onnx.NodeProto]]:
    """Quantize and dequantize a tensor: int8 by channel along an axis, uint8 by min-max without one."""
    if axis is None:
        low, high = min(0.0, *(float(v.min()) for v in values)), max(0.0, *(float(v.max()) for v in values))
        scale = np.array((high - low) / 255 or 1.0, np.float32)
        zero = np.array(round(-low / float(scale)), np.uint8)
    else:
        others = tuple(one for one in range(values[0].ndim) if one != axis)
        scale = np.maximum(np.abs(values[0]).max(axis=others) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        zero = np.zeros(scale.shape, np.int8)
    stem = f"{name}_by_{'tensor' if axis is None else axis}"
    parameters = [f"{stem}_scale", f"{stem}_zero"]
    proto.graph.initializer.extend(
        [numpy_helper.from_array(scale, parameters[0]), numpy_helper.from_array(zero, parameters[1])]
    )
    extra: dict[str, Any] = {} if axis is None else {"axis": axis}
    codes = helper.make_node("QuantizeLinear", [name, *parameters], [f"{stem}_codes"], **extra)
    back = helper.make_node("DequantizeLinear", [f"{stem}_codes", *parameters], [f"{stem}_back"], **extra)
    return f"{stem}_back", [codes, back]
