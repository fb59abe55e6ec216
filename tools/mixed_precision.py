"""Uniform against mixed precision on the bundled model and its outlier twin, and how far predictions can be trusted.

    python tools/mixed_precision.py [--validation VALIDATION.npz] [--bits 8 7 6 5 4] [--model NAME] [--worth 0.75]
        [--write [NAME]]

Every row is a whole run: 64 calibration images, default fit, weights of that many bits on average (patch embedding and head
keep 8), activations of 8 bits. "size" is the file's. Accuracy is on the bundled test images, or on labelled images that are
given.

A choice is proposed, and written if it is predicted to gain enough over the same width for all; where it is not, that is what
is written, and its figures are those of the uniform row. --worth asks for less than onnxvitq does, to see what it would come
to. "passes" and "s" are what choosing costs: the runs of a probe in
passes over the calibration images, and all of its time.

The second table draws 60 random choices of bits and compares the ranking that was predicted with the measured one (Spearman;
of 20, it moves by 0.15 from one set to the next), both before anything is fitted to a choice, but with each layer's weights
rounded with feedback: "any" draws a width of 3 to 8 for each unit, "equal" only choices of 5 bits on average within 0.1. The
error is measured on 64 images that nothing else has seen. Needs torch, for the twin.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from fashion import CALIBRATION, PREPROCESSOR_CONFIG, TEST, data, export_bundled, export_twin
from objective_table import ACCURACY
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq import api
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.handover import Handover
from onnxvitq.data.opening import open_for_model
from onnxvitq.evaluation.probe import Samples
from onnxvitq.fit.order import steps_of
from onnxvitq.fit.runner import run_steps
from onnxvitq.fit.start import calibrate
from onnxvitq.fit.state import FitContext
from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import save_for_session, to_proto
from onnxvitq.precision import budget
from onnxvitq.precision.allocator import BitAllocator
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.trial import ChoiceTrial
from onnxvitq.runtime.canonical_form import bring_to_canonical_form
from onnxvitq.runtime.session import Session

Granularity = Literal["module", "layer"]
Criterion = Literal["nuclear", "measured"]
CHOICES = columns(
    *(
        "model",
        "bits",
        "granularity",
        "criterion",
        ("predicted gain dB", "{:.1f}"),
        ("measured gain dB, unfitted", "{:.1f}"),
    ),
    *(("passes", "{:.2f}"), ("s", "{:.1f}"), "written", ("size MB", "{:.3f}"), *ACCURACY),
)
RANKINGS = columns(
    *("model", "granularity", "criterion", "draws", ("Spearman", "{:.3f}")),
    *(("measured SQNR dB, from", "{:.1f}"), ("to", "{:.1f}")),
)
FORMS: tuple[tuple[Granularity, Criterion], ...] = (
    *(("module", "nuclear"), ("module", "measured"), ("layer", "nuclear"), ("layer", "measured")),
)
Written = Callable[[QuantConfig, bool], tuple[float, ...]]  # the figures of what is written: mixed or uniform
DRAWS, SEEN, WIDTHS = 60, 64, (3, 4, 5, 6, 7, 8)
PREPROCESS = api.PreprocessOptions(config_file=PREPROCESSOR_CONFIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A network after the exact steps, its held-out samples, and samples of the test images."""

    network: PlannedNetwork
    held: Samples
    unseen: Samples


def models(folder: Path, wanted: str | None) -> Iterator[tuple[str, Path]]:
    """The bundled model and its twin."""
    for name, make in (("bundled", export_bundled), ("twin", export_twin)):
        if wanted in (None, name):
            yield name, make(folder / f"{name}.onnx")


def figures_of(model: Path, folder: Path, images: Path, config: QuantConfig) -> tuple[float, ...]:
    """Size, SQNR, agreement and top-1 of one run."""
    output = folder / "int8.onnx"
    report = api.quantize(model, CALIBRATION, output, config, preprocess=PREPROCESS).report.to_dict()
    found = api.evaluate((model, output), images, preprocess=PREPROCESS, threads=config.threads)
    return (
        report["size_mb"]["quantized"],
        found.sqnr_db,
        100 * (found.agreement or 0),
        found.quantized,
        found.reference,
    )


def add_form(table: Table, lead: tuple[str, int], prepared: Prepared, config: QuantConfig, written: Written) -> None:
    """A row of the first table: what one way of choosing proposes and what that comes to."""
    begun = time.perf_counter()
    report = BitAllocator(prepared.network, prepared.held, config).choose()[1]
    seconds, passes = time.perf_counter() - begun, report.runs / prepared.network.statistics.count
    assert report.proposed.measured_db is not None  # both are evaluated
    assert report.uniform.measured_db is not None
    predicted = report.proposed.predicted_db - report.uniform.predicted_db
    measured = report.proposed.measured_db - report.uniform.measured_db
    state = "mixed" if report.mixed else "uniform"
    cells = (config.granularity, config.criterion, predicted, measured, passes, seconds, state)
    table.add(*lead, *cells, *written(config, report.mixed))


def comparison(folder: Path, images: Path, args: argparse.Namespace) -> Table:
    """The first table."""
    table = Table(columns=CHOICES)
    for name, model in models(folder, args.model):
        for width in args.bits:
            uniform = figures_of(model, folder, images, QuantConfig(bits=f"w{width}a8", threads=args.threads))
            table.add(name, width, *[None] * 6, "uniform", *uniform)
            start = QuantConfig(bits=f"w{width}a8", threads=args.threads, skip=("scales", "bias", "weights"))
            made = prepared(model, folder, start)

            def written(
                config: QuantConfig, mixed: bool, model: Path = model, uniform: tuple[float, ...] = uniform
            ) -> tuple[float, ...]:
                return figures_of(model, folder, images, config) if mixed else uniform

            for granularity, criterion in FORMS:
                config = QuantConfig(
                    average_bits=width, granularity=granularity, criterion=criterion, threads=args.threads
                )
                add_form(table, (name, width), made, config, written)
    return table


def ranks(values: list[float]) -> np.ndarray:
    """Place of each value; no two are equal."""
    return np.argsort(np.argsort(values))


def rankings(folder: Path, wanted: str | None, threads: int) -> Table:
    """The second table."""
    table = Table(columns=RANKINGS)
    for name, path in models(folder, wanted):
        start = QuantConfig(bits="w5a8", threads=threads, skip=("scales", "bias", "weights"))
        made = prepared(path, folder, start)
        for granularity, criterion in FORMS:
            config = QuantConfig(average_bits=5.0, threads=threads, granularity=granularity, criterion=criterion)
            allocator = BitAllocator(made.network, made.held, config)
            _, costs = allocator.costs()
            trial = ChoiceTrial(made.network, allocator.groups, allocator.rounding, made.unseen, threads=threads)
            for kind in ("any", "equal"):
                rng = np.random.default_rng(0)
                drawn = list(itertools.islice(draws(rng, [group.size for group in allocator.groups], kind), DRAWS))
                options = [[costs.widths.index(width) for width in choice] for choice in drawn]
                predicted = [-costs.error(choice) for choice in options]
                measured = [trial.sqnr_db(costs.bits(choice)) for choice in options]
                spearman = float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1])
                table.add(name, granularity, criterion, kind, spearman, min(measured), max(measured))
    return table


def draws(rng: np.random.Generator, sizes: list[int], kind: str) -> Iterator[list[int]]:
    """Widths of all groups, at random."""
    while True:
        choice = [int(width) for width in rng.choice(WIDTHS, len(sizes))]
        if kind == "any" or abs(np.average(choice, weights=sizes) - 5) < 0.1:
            yield choice


def prepared(path: Path, folder: Path, config: QuantConfig) -> Prepared:
    """The model after the exact steps, its held-out samples, and samples of the test images."""
    loaded = load_model(path)
    opened = open_for_model(CALIBRATION, path, loaded.inputs, loaded.metadata, PREPROCESS, config.num_samples)
    source = opened.source
    bring_to_canonical_form(loaded, config.threads)
    steps = steps_of(config)
    context = FitContext.of(loaded, CalibrationDataset(source, again=True), config)
    started, context = calibrate(Handover(loaded.graph), context, steps, source.count)
    state, _, _ = run_steps(started, context, steps)
    exact = folder / "exact.onnx"
    save_for_session(to_proto(state.graph.copy(), {}), exact)
    session, name = Session(exact, threads=config.threads), loaded.inputs[0].name
    pixels = np.load(TEST)["x"][:SEEN, None].astype(np.float32)
    images = (pixels / np.float32(255) - np.float32(data.MEAN)) / np.float32(data.STD)
    feeds = [{name: images[index : index + 16]} for index in range(0, SEEN, 16)]
    unseen = Samples(feeds=feeds, references=[session.run(feed)[0] for feed in feeds])
    network = PlannedNetwork(graph=state.graph, layers=state.layers, plan=state.plan, statistics=state.statistics)
    return Prepared(network=network, held=context.held_out(), unseen=unseen)


def main() -> None:
    """Both tables."""
    parser = parser_of(__doc__, "mixed_precision")
    parser.add_argument("--validation", type=Path, help="labelled images (.npz) in place of the test images")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 7, 6, 5, 4])
    parser.add_argument("--model", choices=("bundled", "twin"))
    parser.add_argument(
        "--worth", type=float, default=budget.WORTH_DB, help="dB that a choice must be predicted to gain"
    )
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    asked, budget.WORTH_DB = budget.WORTH_DB, args.worth
    head = f"Mixed bits are written where {args.worth:g} dB are predicted to be gained (onnxvitq asks for {asked:g})."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = [comparison(folder, args.validation or TEST, args), rankings(folder, args.model, args.threads)]
    finish(Results(name="mixed_precision", tables=tables, made=provenance(["torch"]), about=[head]), args.write)


if __name__ == "__main__":
    main()
