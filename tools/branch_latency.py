"""What branches of low rank cost on ViT-S geometry: bytes, time, and whether every Gemm of theirs is an integer kernel.

    python tools/branch_latency.py [--folder vit_s] [--bits w4a4] [--latency 0.04 0.08 1000] [--runs 60]
        [--write [NAME]]

The float model is the static one of tools/vit_s.py, which makes it. Its weights are random, so no branch gains anything: gains
are drawn that fall with the rank and are alike for all layers, and the ranks are what the budgets of 10 % of the weights'
bytes and of the time then allow; values of the factors are noise. Timed interleaved on one thread, in processor time of that
thread, so that other work on the machine is not in it; the ratio is that of the medians of all runs and, as a check, of the
fastest runs.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tables import Results, Shown, Table, columns, finish, parser_of, provenance
from vit_s import export, prepare

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Branch, Layers, QuantPlan, planned_linear
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.low_rank.branches import MAX_RANK
from onnxvitq.fit.steps.low_rank.fit import FACTOR_A, FACTOR_B, INNER
from onnxvitq.fit.steps.low_rank.ranks import FittedBranches, best_ranks, weight_bytes
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import readers_by_input
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import save_model, to_proto
from onnxvitq.numerics.affine import params_from_range, params_from_weight
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.noise import random_feed
from onnxvitq.runtime.session import Session
from onnxvitq.targets.registry import DEFAULT_TARGET

SIZE = 0.1
TOKENS = 197


def unfitted(layers: Layers, bits: str) -> QuantPlan:
    """Every site with some range: time does not depend on which."""
    plan = make_plan(layers.blockmap, QuantConfig(bits=bits))
    fitted = {}
    for name, one in plan.decisions.items():
        weight = one.site.kind == "weight"
        fitted[name] = (
            params_from_weight(layers.constants[name], one.spec) if weight else params_from_range(-3.0, 3.0, one.spec)
        )
    return plan.with_params(fitted)


def ranks(layers: Layers, plan: QuantPlan, latency: float) -> dict[str, int]:
    """As both budgets allow where all layers gain alike."""
    rng = np.random.default_rng(0)
    found = []
    for tensor, group in readers_by_input(layers.blockmap.linears).items():
        if all(planned_linear(plan, one) and one.kind == "linear" for one in group):
            gains = rng.uniform(0.5, 1.0) * 0.9 ** np.arange(MAX_RANK, dtype=np.float64)
            outputs, rows = sum(one.out_features for one in group), 1 if group[0].role == "head" else TOKENS
            able = {one.name: noise(one.in_features, one.out_features, 1, rng) for one in group}
            gain = FittedBranches(
                tensor=tensor,
                gains=gains,
                inputs=group[0].in_features,
                outputs=outputs,
                rows=float(rows),
                branches=able,
            )
            found.append(gain)
    return best_ranks(found, SIZE * weight_bytes(layers, plan), latency)


def noise(inputs: int, outputs: int, rank: int, rng: np.random.Generator) -> Branch:
    """A branch of that size."""
    a = (rng.normal(size=(inputs, rank)) / np.sqrt(inputs)).astype(np.float32)
    b = (0.01 * rng.normal(size=(rank, outputs))).astype(np.float32)
    inner = params_from_range(-4.0, 4.0, INNER)
    return Branch(
        a=a, b=b, a_params=params_from_weight(a, FACTOR_A), b_params=params_from_weight(b, FACTOR_B), inner=inner
    )


def with_branches(plan: QuantPlan, blockmap: BlockMap, chosen: Mapping[str, int]) -> QuantPlan:
    """Of these ranks; layers that read one tensor share A."""
    rng, branches = np.random.default_rng(0), {}
    for tensor, group in readers_by_input(blockmap.linears).items():
        if chosen.get(tensor):
            first = noise(group[0].in_features, 1, chosen[tensor], rng)
            for one in group:
                own = noise(one.in_features, one.out_features, chosen[tensor], rng)
                branches[one.name] = Branch(
                    a=first.a, b=own.b, a_params=first.a_params, b_params=own.b_params, inner=first.inner
                )
    return plan.with_branches(branches)


def timed(models: list[Path], feed: dict[str, np.ndarray], runs: int) -> np.ndarray:
    """Processor seconds of each run, interleaved: (runs, models)."""
    sessions = [Session(path, threads=1) for path in models]
    times = np.zeros((runs + 1, len(sessions)))
    for run in range(runs + 1):
        for index, session in enumerate(sessions):
            begin = time.thread_time()
            session.run(feed)
            times[run, index] = time.thread_time() - begin
    return times[1:]


def main() -> None:
    """Write, audit, time, print."""
    parser = parser_of(__doc__, "branch_latency")
    parser.add_argument("--folder", type=Path, default=Path("vit_s"))
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--latency", nargs="+", type=float, default=[0.04, 0.08, 1000.0])
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    source = export(prepare(args.folder, 1)[0], "dynamo", "static")
    loaded = load_model(source)
    bring_to_canonical_form(loaded, 1)
    blockmap = find_blocks(loaded.graph, str(source))
    names = {name for one in blockmap.linears for name in (one.weight, one.bias) if name}
    layers = Layers(blockmap=blockmap, constants=constants(loaded.graph, names))
    plan = unfitted(layers, args.bits)
    chosen = [ranks(layers, plan, latency) for latency in args.latency]
    plans = [plan, *(with_branches(plan, blockmap, one) for one in chosen)]
    with tempfile.TemporaryDirectory() as name:
        models = [Path(name) / f"{index}.onnx" for index in range(len(plans))]
        for model, one in zip(models, plans, strict=True):
            save_model(to_proto(DEFAULT_TARGET.write(loaded.graph, layers, one), {}), model)
        sizes = [model.stat().st_size for model in models]
        counts = [
            DEFAULT_TARGET.audit(model, blockmap, one, 1).branches for model, one in zip(models, plans, strict=True)
        ]
        times = timed(models, random_feed(loaded.inputs, 1, 0), args.runs)
    medians, least = np.median(times, axis=0), times.min(axis=0)
    table = Table(
        columns=columns(
            *("budget of time", ("branches beside", "{} of {} linears"), "Gemms", "on integer kernels"),
            *(("file", "{:+.0f} kB"), ("over the weights' bytes", "{:.1f} %")),
            *(("time, medians", "{:+.1f} %"), ("time, fastest", "{:+.1f} %")),
        )
    )
    packed = weight_bytes(layers, plan)
    for index, latency in enumerate(args.latency, start=1):
        more = sizes[index] - sizes[0]
        table.add(
            Shown(100 * latency, "{:.0f} %") if latency < 1 else "none",
            (len(plans[index].branches), len(blockmap.linears)),
            *(counts[index].found, counts[index].integer_kernels, more / 1e3, 100 * more / packed),
            *(100 * float(values[index] / values[0] - 1) for values in (medians, least)),
        )
    about = (
        f"ViT-S geometry, {args.bits}, one thread, {args.runs} runs interleaved, "
        f"{1e3 * medians[0]:.1f} ms of processor time without branches"
    )
    results = Results(name="branch_latency", tables=[table], made=provenance(["torch"]), about=[about])
    finish(results, args.write)


if __name__ == "__main__":
    main()
