"""What each part of ``--method aiqvit`` is worth at few bits: every part removed in turn, and ranks fixed against searched.

    python tools/aiqvit_ablation.py [--models bundled outliers] [--bits w4a4 w3a3] [--seeds 0 1 2] [--iterations 400]
        [--rows NAME ...] [--limit IMAGES] [--validation] [--write [NAME]]

Rows that begin with "plain" start from scales searched alone (--method search, weights rounded to nearest); those that begin
with "bare" the same without maps of channels (--skip channels online-channels), which is the paper's baseline; all others from
the closed form. Branches are fitted within the budget of bytes, whatever time they take, but for the rows that say otherwise;
"method aiqvit" is what that option does.

Models and data are those of tools/bench_accuracy.py: a seed is a draw of 64 calibration images and the seed of every random
draw. Figures are of the test images, mean and spread (largest minus smallest) over the seeds: top-1, the SQNR of the outputs,
and 1000 times the Kullback-Leibler divergence from the float model's answers. --validation takes images that neither trained,
nor calibrated, nor test. Needs torch and Debian's dataset-fashion-mnist. What was measured is printed, and with
--write written, as it comes.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from bench_models import BENCHES, IMAGE_DRAWS, Bench
from fashion import data
from running import infer
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.handover import Handover
from onnxvitq.core.plan import QuantPlan
from onnxvitq.data.source import open_source
from onnxvitq.fit.order import steps_of
from onnxvitq.fit.runner import run_steps
from onnxvitq.fit.start import calibrate
from onnxvitq.fit.state import FitContext, token_weights
from onnxvitq.fit.steps.block_learning.block import Learned
from onnxvitq.fit.steps.block_learning.rank_search import CANDIDATES, RankSearch, search_ranks
from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
from onnxvitq.fit.steps.block_learning.training import Reconstruction
from onnxvitq.fit.steps.low_rank.branches import Branches, fit_branches
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.scratch import scratch_folder
from onnxvitq.graph.writing import save_model, to_proto
from onnxvitq.numerics.decibels import sqnr
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.targets.registry import DEFAULT_TARGET

COLUMNS = columns(
    *("", "draws", ("top-1 %", "{:.2f}"), ("spread", "{:.2f}"), ("loss", "{:.2f}"), ("SQNR dB", "{:.2f}")),
    *(("divergence x1000", "{:.1f}"), ("branches KB", "{:.1f}")),
)
MEANS = ("sqnr_db", "divergence", "kilobytes")
BATCH = 100
ANY = 1e9  # a budget that limits nothing


class Start:
    """What rows start from: a model without blocks learned, at one width, of one draw."""

    def __init__(self, model: Bench, bits: str, seed: int, iterations: int, kind: str) -> None:
        config = replace(STARTS[kind], bits=bits, seed=seed, threads=1, iterations=iterations)
        loaded = load_model(model.model)
        bring_to_canonical_form(loaded, 1)
        source = open_source(model.calibration(64, seed), loaded.inputs, None, limit=None)
        self.dataset, steps = CalibrationDataset(source, again=True), steps_of(config)
        started, context = calibrate(
            Handover(loaded.graph), FitContext.of(loaded, self.dataset, config), steps, count=None
        )
        self.fitted, _, _ = run_steps(started, context, steps)
        self.positions, self.seed, self.iterations = token_weights(self.fitted), seed, iterations

    @cached_property
    def branched(self) -> QuantPlan:
        """With branches in closed form, within the budget of bytes."""
        return self.branches(self.fitted.plan)

    def branches(self, plan: QuantPlan, **options: object) -> QuantPlan:
        """With branches in closed form."""
        asked = Branches(**{"latency": ANY, "positions": self.positions, "threads": 1, **options})  # type: ignore[arg-type]
        with scratch_folder() as folder:
            return fit_branches(self.fitted.graph, self.fitted.layers, plan, self.dataset, folder, asked)[0]

    def searched(self) -> QuantPlan:
        """With branches in closed form of the ranks that the search by gradients chose."""
        largest = self.branches(self.fitted.plan, rank=max(CANDIDATES))
        training = Reconstruction(
            iterations=self.iterations // 4, drop=0.0, seed=self.seed, positions=self.positions, threads=1
        )
        with scratch_folder() as folder:
            ranks = search_ranks(
                self.fitted.graph,
                self.fitted.layers,
                largest,
                self.dataset,
                folder,
                RankSearch(training=training),
            )
        return self.branches(self.fitted.plan, rank=ranks)

    def learned(self, plan: QuantPlan, **options: object) -> QuantPlan:
        """Every block learned."""
        asked = Reconstruction(
            iterations=self.iterations,
            seed=self.seed,
            positions=self.positions,
            threads=1,
            **options,  # type: ignore[arg-type]
        )
        with scratch_folder() as folder:
            return reconstruct(self.fitted.graph, self.fitted.layers, plan, self.dataset, folder, asked)[0]

    def answers(self, plan: QuantPlan, model: Bench) -> np.ndarray:
        """Of the written model, to all test images."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_model(to_proto(DEFAULT_TARGET.write(self.fitted.graph, self.fitted.layers, plan), {}), path)
            return infer(path, model.test, BATCH)


Row = Callable[[Start], QuantPlan]

NO_WEIGHTS = Learned(weights=False)
PLAIN: dict[str, Row] = {
    "plain": lambda start: start.fitted.plan,
    "plain + branches": lambda start: start.branched,
    "plain, scales learned": lambda start: start.learned(start.fitted.plan, learned=NO_WEIGHTS),
    "plain, scales and branches learned": lambda start: start.learned(
        start.branched, curriculum=True, learned=NO_WEIGHTS
    ),
}
BARE: dict[str, Row] = {
    "bare": PLAIN["plain"],
    "bare + branches": PLAIN["plain + branches"],
    "bare, scales learned": PLAIN["plain, scales learned"],
    "bare, scales and branches learned (the paper's)": PLAIN["plain, scales and branches learned"],
}
PARTS: dict[str, Row] = {
    "closed form": lambda start: start.fitted.plan,
    "closed form + branches": lambda start: start.branched,
    "closed form, scales learned": lambda start: start.learned(start.fitted.plan, learned=NO_WEIGHTS),
    "closed form, scales and branches learned": lambda start: start.learned(start.branched, learned=NO_WEIGHTS),
    "method aiqvit": lambda start: start.fitted.plan,
    "all parts": lambda start: start.learned(start.branched, curriculum=True),
    "without branches": lambda start: start.learned(start.fitted.plan, curriculum=True),
    "without the focusing quantizer": lambda start: start.learned(
        start.branched, curriculum=True, learned=Learned(focus=False)
    ),
    "without the curriculum": lambda start: start.learned(start.branched),
    "without mixtures": lambda start: start.learned(start.branched, curriculum=True, mixtures=0.0),
    "without dropping quantization": lambda start: start.learned(start.branched, curriculum=True, drop=0.0),
}
RANKS: dict[str, Row] = {
    "rank 2 everywhere": lambda start: start.learned(start.branches(start.fitted.plan, rank=2)),
    "rank 8 everywhere": lambda start: start.learned(start.branches(start.fitted.plan, rank=8)),
    "rank 20 everywhere": lambda start: start.learned(start.branches(start.fitted.plan, rank=20)),
    "by energy, 10 % of the weights": lambda start: start.learned(start.branched),
    "searched by gradients, 10 % of the weights": lambda start: start.learned(start.searched()),
}
ROWS = {**PLAIN, **BARE, **PARTS, **RANKS}
STARTS: dict[str, QuantConfig] = {
    "closed form": QuantConfig(),
    "aiqvit": QuantConfig(method="aiqvit"),
    "plain": QuantConfig(method="search"),
    "bare": QuantConfig(method="search", skip=("channels", "online-channels")),
}
START_OF = {"method aiqvit": "aiqvit", **dict.fromkeys(PLAIN, "plain"), **dict.fromkeys(BARE, "bare")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Of one row and one seed: top-1 in percent, SQNR in dB, 1000 times the divergence, kilobytes of the branches."""

    top1: float
    sqnr_db: float
    divergence: float
    kilobytes: float


Figures = dict[str, list[Figure]]


def measured(
    model: Bench, bits: str, seeds: list[int], wanted: list[str], iterations: int
) -> Iterator[tuple[str, Figure]]:
    """(row, figure) as they come."""
    reference = infer(model.model, model.test, BATCH)
    for seed in seeds:
        starts: dict[str, Start] = {}
        for name in wanted:
            kind = START_OF.get(name, "closed form")
            if kind not in starts:
                starts[kind] = Start(model, bits, seed, iterations, kind)
            plan = ROWS[name](starts[kind])
            answers = starts[kind].answers(plan, model)
            yield (
                name,
                Figure(
                    top1=model.evaluate(answers),
                    sqnr_db=sqnr(float(np.sum(reference**2)), float(np.sum((answers - reference) ** 2))),
                    divergence=1e3 * divergence(reference, answers),
                    kilobytes=sum(branch.nbytes for branch in plan.branches.values()) / 1e3,
                ),
            )


def divergence(reference: np.ndarray, answers: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the softmax of logits (N, C) from that of the reference, in nats."""
    one, other = (torch.log_softmax(torch.from_numpy(logits), dim=1) for logits in (reference, answers))
    return float(torch.nn.functional.kl_div(other, one, reduction="batchmean", log_target=True))


def table_of(title: str, figures: Figures, float_top1: float) -> Table:
    """One table; rows that were not measured yet are not in it."""
    table = Table(columns=COLUMNS, title=f"{title}; float {float_top1:.2f} %")
    for name, found in figures.items():
        if not found:
            continue
        top1 = [figure.top1 for figure in found]
        means = [float(np.mean([getattr(figure, part) for figure in found])) for part in MEANS]
        mean = float(np.mean(top1))
        table.add(name, len(found), mean, max(top1) - min(top1), float_top1 - mean, *means)
    return table


def on_validation(model: Bench) -> Bench:
    """Evaluated on training images that neither trained nor calibrated."""
    images, labels = data.read("train")
    validation = data.split_indices(len(images))[2]
    truth = labels[validation]
    return replace(
        model,
        test={"input": data.normalise(images[validation])},
        evaluate=lambda logits: 100 * float(np.mean(logits.argmax(axis=-1) == truth)),
    )


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, "aiqvit")
    parser.add_argument("--models", nargs="+", default=["bundled", "outliers"], choices=["bundled", "outliers"])
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w3a3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], choices=range(IMAGE_DRAWS))
    parser.add_argument("--iterations", type=int, default=QuantConfig().iterations)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--limit", type=int, help="test images")
    parser.add_argument("--validation", action="store_true", help="evaluate on validation images")
    args = parser.parse_args()
    tables: dict[str, Table] = {}
    made = provenance(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model = BENCHES[name](Path(folder), args.limit)
            model = on_validation(model) if args.validation else model
            float_top1 = model.evaluate(infer(model.model, model.test, BATCH))
            for bits in args.bits:
                title = f"{model.title}, {bits}"
                figures: Figures = {row: [] for row in args.rows}
                for row, figure in measured(model, bits, args.seeds, args.rows, args.iterations):
                    figures[row].append(figure)
                    tables[title] = table_of(title, figures, float_top1)
                    results = Results(name="aiqvit", tables=[*tables.values()], made=made, about=[about(model, args)])
                    finish(results, args.write)


def about(model: Bench, args: argparse.Namespace) -> str:
    """What all tables are of."""
    images = f"{len(next(iter(model.test.values())))} {'validation' if args.validation else 'test'} images"
    return f"{images}, 64 calibration images, draws {args.seeds}, {args.iterations} iterations a block"


if __name__ == "__main__":
    main()
