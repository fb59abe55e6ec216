"""Uniform against mixed precision on the bundled model and its outlier twin, and how far predictions can be trusted.

    python tools/mixed_precision.py [--write] [--validation VALIDATION.npz] [--bits 8 7 6 5 4] [--model NAME] [--worth 0.75]

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
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq import api
from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.handover import Handover
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

TOOLS = Path(__file__).parent
sys.path.insert(0, str(TOOLS))
from objective_table import BUNDLED, RESULTS, build, data, export, with_outliers

FORMS = tuple(itertools.product(("module", "layer"), ("nuclear", "measured")))
DRAWS, SEEN, WIDTHS = 60, 64, (3, 4, 5, 6, 7, 8)
PREPROCESS = api.PreprocessOptions(config_file=BUNDLED / "preprocessor_config.json")


def models(folder: Path, wanted: str | None) -> Iterator[tuple[str, Path]]:
    """The bundled model and its twin."""
    for name, model in (("bundled", build()), ("twin", with_outliers(build(), np.random.default_rng(0)))):
        if wanted in (None, name):
            path = folder / f"{name}.onnx"
            export(model, path)
            yield name, path


def row(model: Path, folder: Path, images: Path, config: QuantConfig) -> str:
    """Size, SQNR, agreement and top-1 of one run."""
    output = folder / "int8.onnx"
    report: Any = api.quantize(model, BUNDLED / "calib", output, config, preprocess=PREPROCESS).report
    found, _ = api.evaluate_models((model, output), images, PREPROCESS, batch=32, threads=config.threads)
    size = report["size_mb"]["quantized"]
    figures = (
        f"{found.sqnr_db:.2f} | {100 * found.agreement:.2f} | {found.top1_quantized:.2f} | {found.top1_reference:.2f}"
    )
    return f"{size:.3f} | {figures}"


def comparison(folder: Path, images: Path, bits: list[int], wanted: str | None, threads: int) -> list[str]:
    """The first table."""
    lines = [
        "| model | bits | granularity | criterion | predicted gain dB | measured gain dB, unfitted | passes | s | written "
        "| size MB | SQNR dB | agreement % | top-1 % | float top-1 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, model in models(folder, wanted):
        for width in bits:
            uniform = row(model, folder, images, QuantConfig(bits=f"w{width}a8", threads=threads))
            lines.append(f"| {name} | {width} | | | | | | | uniform | {uniform} |")
            print(lines[-1], flush=True)
            start = QuantConfig(bits=f"w{width}a8", threads=threads, skip=("scales", "bias", "weights"))
            network, held, _ = prepared(model, folder, start)
            for granularity, criterion in FORMS:
                config = QuantConfig(average_bits=width, granularity=granularity, criterion=criterion, threads=threads)
                begun = time.perf_counter()
                report = BitAllocator(network, held, config).choose()[1]
                seconds, passes = time.perf_counter() - begun, report.runs / network.statistics.count
                assert report.proposed.measured_db is not None  # both are evaluated
                assert report.uniform.measured_db is not None
                gains = (
                    report.proposed.predicted_db - report.uniform.predicted_db,
                    report.proposed.measured_db - report.uniform.measured_db,
                )
                written = f"mixed | {row(model, folder, images, config)}" if report.mixed else f"uniform | {uniform}"
                figures = f"{gains[0]:.1f} | {gains[1]:.1f} | {passes:.2f} | {seconds:.1f}"
                lines.append(f"| {name} | {width} | {granularity} | {criterion} | {figures} | {written} |")
                print(lines[-1], flush=True)
    return lines


def ranks(values: list[float]) -> np.ndarray:
    """Place of each value; no two are equal."""
    return np.argsort(np.argsort(values))


def rankings(folder: Path, wanted: str | None, threads: int) -> list[str]:
    """The second table."""
    lines = [
        "| model | granularity | criterion | draws | Spearman | measured SQNR dB, from | to |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, path in models(folder, wanted):
        config = QuantConfig(average_bits=5.0, threads=threads)
        network, held, unseen = prepared(
            path, folder, QuantConfig(bits="w5a8", threads=threads, skip=("scales", "bias", "weights"))
        )
        for granularity, criterion in FORMS:
            form = replace(config, granularity=granularity, criterion=criterion)
            allocator = BitAllocator(network, held, form)
            _, costs = allocator.costs()
            trial = ChoiceTrial(network, allocator.groups, allocator.rounding, unseen, threads=threads)
            for kind in ("any", "equal"):
                rng = np.random.default_rng(0)
                drawn = list(itertools.islice(draws(rng, [group.size for group in allocator.groups], kind), DRAWS))
                options = [[costs.widths.index(width) for width in choice] for choice in drawn]
                predicted = [-costs.error(choice) for choice in options]
                measured = [trial.sqnr_db(costs.bits(choice)) for choice in options]
                spearman = float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1])
                figures = f"{spearman:.3f} | {min(measured):.1f} | {max(measured):.1f}"
                lines.append(f"| {name} | {granularity} | {criterion} | {kind} | {figures} |")
                print(lines[-1], flush=True)
    return lines


def draws(rng: np.random.Generator, sizes: list[int], kind: str) -> Iterator[list[int]]:
    """Widths of all groups, at random."""
    while True:
        choice = [int(width) for width in rng.choice(WIDTHS, len(sizes))]
        if kind == "any" or abs(np.average(choice, weights=sizes) - 5) < 0.1:
            yield choice


def prepared(path: Path, folder: Path, config: QuantConfig) -> tuple[PlannedNetwork, Samples, Samples]:
    """The model after the exact steps, its held-out samples, and samples of the test images."""
    loaded = load_model(path)
    source, _, _ = api._open(loaded, BUNDLED / "calib", config, PREPROCESS)
    bring_to_canonical_form(loaded, config.threads)
    steps = steps_of(config)
    context = FitContext.of(loaded, CalibrationDataset(source, again=True), config)
    started, context = calibrate(Handover(loaded.graph), context, steps, source.count)
    state, _, _ = run_steps(started, context, steps)
    exact = folder / "exact.onnx"
    save_for_session(to_proto(state.graph.copy(), {}), exact)
    session, name = Session(exact, threads=config.threads), loaded.inputs[0].name
    pixels = np.load(BUNDLED / "test.npz")["x"][:SEEN, None].astype(np.float32)
    images = (pixels / np.float32(255) - np.float32(data.MEAN)) / np.float32(data.STD)
    feeds = [{name: images[index : index + 16]} for index in range(0, SEEN, 16)]
    unseen = Samples(feeds=feeds, references=[session.run(feed)[0] for feed in feeds])
    network = PlannedNetwork(graph=state.graph, layers=state.layers, plan=state.plan, statistics=state.statistics)
    return network, context.held_out(), unseen


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validation", type=Path, help="labelled images (.npz) in place of the test images")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 7, 6, 5, 4])
    parser.add_argument("--model", choices=("bundled", "twin"))
    parser.add_argument(
        "--worth", type=float, default=budget.WORTH_DB, help="dB that a choice must be predicted to gain"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    asked, budget.WORTH_DB = budget.WORTH_DB, args.worth
    head = f"Mixed bits are written where {args.worth:g} dB are predicted to be gained (onnxvitq asks for {asked:g})."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = comparison(folder, args.validation or BUNDLED / "test.npz", args.bits, args.model, args.threads)
        table += ["", *rankings(folder, args.model, args.threads)]
    if args.write:
        (RESULTS / "mixed_precision.md").write_text("\n".join([head, "", *table]) + "\n")


if __name__ == "__main__":
    main()
