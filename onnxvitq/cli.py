"""The command line: parse, build the configuration, call the pipeline, print. No logic lives here.

Exit codes: 0 written and sound; 2 wrong use or bad input, one line on standard error; 3 written, but an audit that
``--strict`` asked for failed; 130 interrupted, what was not complete is not written.
"""

import argparse
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from onnxvitq.config import (
    Criterion,
    Effort,
    Granularity,
    Method,
    ObjectiveName,
    QuantConfig,
    RankSearchName,
    StepName,
    Target,
    load_config,
    parse_bits,
)
from onnxvitq.errors import ConfigError, OnnxVitqError

if TYPE_CHECKING:
    from onnxvitq.pipeline import Benchmark
    from onnxvitq.runtime.profile import OperatorTime

EXIT_BAD_INPUT, EXIT_BELOW_QUALITY, EXIT_INTERRUPTED = 2, 3, 130
LISTED = 5  # unreadable images that are named
CAUGHT = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0  # seconds after an interrupt in which another one does not disturb the clearing up

# Spellings that users of other tools type by habit.
CALIBRATION = ("--calib", "--calibration-data-path")
SAMPLES = ("--num-samples", "--samples", "--subset-size")
OBJECTIVE = ("--objective", "--calibration-method")
HABITS = {"--no-bias-correction": "bias", "--no-rebuild": "weights"}


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog, message, "see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text
    command: Callable[[Sequence[str]], int] = _quantize
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments.pop(0)]
    with _interruptible() as interrupts:
        try:
            return command(arguments)
        except OnnxVitqError as error:
            sys.stderr.write(f"onnxvitq: error: {error}\n")
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            return _interrupted()
        except ImportError:  # a library written in C makes one of an interrupt that falls into its import
            if not interrupts:
                raise
            return _interrupted()


def _dashed(argument: str) -> str:
    """``--num_samples=3`` is ``--num-samples=3``: both spellings of a long option are accepted."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


@contextmanager
def _interruptible() -> Iterator[list[float]]:
    """SIGTERM ends a command as Ctrl-C does; a signal that is ignored, as in a background job, stays so.

    Gives the times of the interrupts, by the monotonic clock.
    """
    interrupts: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if not interrupts or time.monotonic() - interrupts[-1] > GRACE:
            interrupts.append(time.monotonic())
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in CAUGHT}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted() -> int:
    sys.stderr.write("onnxvitq: interrupted\n")
    return EXIT_INTERRUPTED


def _ignore_interrupts() -> None:
    """Until the command ends."""
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)


def _console() -> Console:
    """Standard output; node names and paths are printed as they are."""
    return Console(markup=False, emoji=False, highlight=False)


def _table(title: str, *columns: str) -> Table:
    """A table whose cells are folded where the terminal is narrow, never cut."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# ------------------------------------------------------------------------------------------------------------ quantize


def _quantize(arguments: Sequence[str]) -> int:
    args = _quantize_parser().parse_args(arguments)
    model = _one_model(args)
    if args.calib is None:
        raise ConfigError("--calib", "expected calibration data: a folder of images, an .npz or an .npy file")
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    config = _config(args)
    output = args.output or model.with_name(f"{model.stem}_int8.onnx")
    _refuse_clashes(args, output)
    from onnxvitq import pipeline  # loads onnxruntime; --help and wrong options need not wait for it
    from onnxvitq.evaluation.report import describe_quality, to_json
    from onnxvitq.graph.io import refuse_output

    for path in (args.report, args.save_config_file, args.sensitivity_file):
        if path is not None:
            refuse_output(path, model)
    with _progress(hidden=args.quiet or args.json) as progress:
        result = pipeline.quantize(model, args.calib, output, config, preprocess=_preprocess(args), progress=progress)
    report = result.report
    _write(args.report, to_json(report))
    _write_sensitivity(args.sensitivity_file, report)
    _write(args.save_config_file, json.dumps(config.to_dict(), indent=2) + "\n")
    _print_report(report, args)
    if args.strict and not report["audit_passed"]:
        sys.stderr.write("onnxvitq: written, but the audit failed: a planned layer is not on an integer kernel\n")
        return EXIT_BELOW_QUALITY
    quality = report.get("quality")
    if quality is not None and not quality["kept"]:
        sys.stderr.write(f"onnxvitq: written, but too many decisions are lost: {describe_quality(quality)}\n")
        return EXIT_BELOW_QUALITY
    return 0


def _one_model(args: argparse.Namespace) -> Path:
    given = [path for path in (args.model, args.input) if path is not None]
    if len(given) != 1:
        usage = "python -m onnxvitq model.onnx --calib images/ -o model_int8.onnx"
        raise ConfigError("onnxvitq", f"expected one model, got {' and '.join(map(str, given)) or 'none'}", usage)
    return Path(given[0])


def _refuse_clashes(args: argparse.Namespace, output: Path) -> None:
    """No file is written over another one of the same command (the model is looked after by the pipeline)."""
    read = {
        "--calib": args.calib,
        "--eval": args.judged_on,
        "--preprocessor-config": args.preprocessor_config,
        "--config": args.config,
    }
    written = {"-o": output, "--report": args.report, "--save-config-file": args.save_config_file}
    written["--sensitivity"] = args.sensitivity_file
    read["--eval"] = (
        args.judged_on if args.judged_on != str(args.calib) else None
    )  # which is refused for another reason
    taken = {os.path.realpath(path): option for option, path in read.items() if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option and (other, option) != ("--config", "--save-config-file"):
            raise ConfigError(option, f"expected a file of its own, got {path}, which {other} names too")


def _write(path: Path | None, text: str) -> None:
    from onnxvitq.graph.io import atomic_file

    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_sensitivity(path: Path | None, report: Mapping[str, Any]) -> None:
    from onnxvitq.evaluation.report import to_json
    from onnxvitq.evaluation.sensitivity import sensitivity_csv

    if path is not None:
        described = report["sensitivity"]
        _write(path, sensitivity_csv(described) if path.suffix == ".csv" else to_json(described))


def _print_report(report: Mapping[str, Any], args: argparse.Namespace) -> None:
    from onnxvitq.evaluation.report import ablation_table, summary, to_json
    from onnxvitq.evaluation.sensitivity import sensitivity_table

    calibration = report["calibration"]
    _warn_skipped(calibration["skipped"])
    _warn_skipped(report.get("quality", {"judge": {"skipped": []}})["judge"]["skipped"])
    if args.json:
        sys.stdout.write(to_json(report))
    elif not args.quiet:
        if calibration["preprocessing"] is not None:
            origin = calibration["preprocessing_from"]
            _console().print(f"preprocessing: {calibration['described']} ({origin})", soft_wrap=True)
        _console().print(summary(report))
        if args.ablation:
            _console().print(ablation_table(report))
        if "sensitivity" in report:
            _console().print(sensitivity_table(report["sensitivity"]))


def _quantize_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="onnxvitq",
        description="Quantize a Vision Transformer for onnxruntime's int8 CPU kernels.",
        epilog=f"Other commands: {', '.join(COMMANDS)} (each with --help).",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", type=Path, help="float ONNX model")
    parser.add_argument("-i", "--input", type=Path, help="the same, as an option")
    parser.add_argument(*CALIBRATION, dest="calib", type=Path, help="folder of images, .npz or .npy")
    parser.add_argument("-o", "--output", type=Path, help="model to write (default: MODEL_int8.onnx)")
    fitting = parser.add_argument_group("fitting (defaults: QuantConfig)")
    fitting.add_argument("--method", choices=get_args(Method), help="how far the fit goes; aiqvit needs torch")
    fitting.add_argument("--iterations", type=int, help="of learning a block (aiqvit)")
    fitting.add_argument(
        "--branch-budget", type=float, help="bytes of low-rank branches over those of the weights (aiqvit)"
    )
    fitting.add_argument("--ranks", choices=get_args(RankSearchName), help="how the budget is shared out (aiqvit)")
    fitting.add_argument(*OBJECTIVE, dest="objective", choices=get_args(ObjectiveName), help="how scales are chosen")
    fitting.add_argument("--candidates", type=int, help="scales tried for each tensor and round")
    fitting.add_argument("--rounds", type=int, help="rounds of the alternating search at most")
    fitting.add_argument("--effort", choices=get_args(Effort), help="how much time the fit may take")
    fitting.add_argument("--skip", nargs="+", action="extend", choices=get_args(StepName), help="steps to leave out")
    for flag, step in HABITS.items():
        text = f"the same as --skip {step}"
        fitting.add_argument(flag, action="append_const", const=step, dest="skip", help=text)
    fitting.add_argument(
        "--acceptance", choices=("held-out", "always"), help="keep of a step what does no harm, or everything"
    )
    fitting.add_argument(
        "--activations", choices=("static", "dynamic", "token", "auto"), help="ranges of the linears' inputs"
    )
    fitting.add_argument(
        "--attention", choices=("int8", "mixed", "float", "auto"), help="the two products of each attention"
    )
    fitting.add_argument("--bits", metavar="wNaM", help="bits of weights and of activations, 2 to 8 each")
    fitting.add_argument("--weight-bits", type=_integer(2, 8), metavar="N", help="the N of --bits; 7 is safe on AVX2")
    fitting.add_argument(
        "--reduce-range", action="store_const", const=7, dest="weight_bits", help="the same as --weight-bits 7"
    )
    fitting.add_argument("--activation-bits", type=_integer(2, 8), metavar="M", help="the M of --bits")
    fitting.add_argument(
        "--bits-for",
        dest="bit_overrides",
        type=_override,
        action="append",
        metavar="PATTERN=wNaM",
        help="other bits, or float, for globs of node names or roles; the last that matches counts",
    )
    fitting.add_argument(
        "--edges-at-8-bits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="patch embedding and head keep 8 bits",
    )
    fitting.add_argument(
        "--nodes-to-exclude",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="globs of node names or roles to keep float",
    )
    fitting.add_argument(*SAMPLES, dest="num_samples", type=int, help="calibration samples at most")
    fitting.add_argument("--static-batch", type=int, metavar="N", help="freeze the batch of the written model")
    fitting.add_argument("--cache", metavar="FOLDER", help="keep what calibration measures, for runs with other bits")
    fitting.add_argument("--target", choices=get_args(Target), help="processors to write for; auto: all of them")
    fitting.add_argument("--seed", type=int, help="of every random draw")
    fitting.add_argument("--threads", type=int, help="of onnxruntime; 0: one a core")
    fitting.add_argument("--config", type=Path, help="options from a .json or .toml file; the command line wins")
    _add_budgets(fitting)
    _add_preprocessing(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--report", type=Path, help="write the report as JSON")
    results.add_argument(
        "--ablation", action="store_true", help="print what every step did to SQNR and agreement on held-out samples"
    )
    results.add_argument(
        "--sensitivity",
        dest="sensitivity_file",
        type=_table_file,
        metavar="FILE",
        help="measure and write the output's error by kind of site and block (.csv or .json)",
    )
    results.add_argument("--save-config-file", type=Path, help="write the options used as JSON")
    results.add_argument(
        "--strict", action="store_true", help="exit 3 when a planned layer is not on an integer kernel"
    )
    _add_output(results)
    results.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    results.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    return parser


def _add_budgets(fitting: "argparse._ActionsContainer") -> None:
    fitting.add_argument(
        "--average-bits", type=float, metavar="N", help="mixed precision: mean bits of the layers' weights"
    )
    fitting.add_argument("--target-size", type=_megabytes, metavar="SIZE", help="mixed precision: of the file, as 12MB")
    fitting.add_argument("--bit-candidates", nargs="+", metavar="BITS", help="widths to choose from: 2 to 8 and float")
    fitting.add_argument("--granularity", choices=get_args(Granularity), help="what gets bits of its own")
    fitting.add_argument("--criterion", choices=get_args(Criterion), help="what bits are chosen by")
    fitting.add_argument("--max-drop", type=_share, metavar="SHARE", help="decisions that may be lost, as 0.5%%")
    fitting.add_argument(
        "--eval",
        dest="judged_on",
        metavar="DATA",
        help="what --max-drop is judged on: a folder a class, .npz with x and y, or data without labels",
    )


def _config(args: argparse.Namespace) -> QuantConfig:
    values = load_config(args.config) if args.config is not None else {}
    for name in QuantConfig.__dataclass_fields__:
        given = getattr(args, name, None)
        if given is not None:
            values[name] = dict(given) if name == "bit_overrides" else given
    if args.weight_bits is not None or args.activation_bits is not None:
        weights, activations = parse_bits("bits", str(values.get("bits", QuantConfig().bits)))
        values["bits"] = f"w{args.weight_bits or weights}a{args.activation_bits or activations}"
    if args.sensitivity_file is not None:
        values["sensitivity"] = True
    return QuantConfig.from_dict(values)


def _override(text: str) -> tuple[str, str]:
    """``block*.mlp.fc2=w4a8``: a pattern may hold a "=" of its own."""
    pattern, equals, bits = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected PATTERN=wNaM or PATTERN=float, got {text!r}")
    return pattern, bits


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preprocessing (default: from the model's metadata or preprocessor_config.json)")
    group.add_argument(
        "--preprocessor-config", type=Path, help="Hugging Face preprocessor_config.json or timm config.json"
    )
    # Their values go as text to the parser that reads them in files, too.
    group.add_argument("--mean", nargs="+", help="one value, or one a channel")
    group.add_argument("--std", nargs="+", help="the same")
    group.add_argument("--resize", nargs="+", help="shortest side, or height and width (also 224x224)")
    group.add_argument("--crop", nargs="+", help="side, or height and width, of the centre crop")
    group.add_argument("--interpolation", help="nearest, bilinear, bicubic or lanczos")
    group.add_argument("--scale", help="multiplies the 0..255 values (default 1/255)")
    group.add_argument("--color", help="L or RGB")


def _preprocess(args: argparse.Namespace) -> Any:
    from onnxvitq.pipeline import PreprocessOptions

    flags: dict[str, object] = {"interpolation": args.interpolation, "scale": args.scale, "color": args.color}
    for name in ("mean", "std", "resize", "crop"):
        values = getattr(args, name)
        flags[name] = values[0] if values is not None and len(values) == 1 else values
    return PreprocessOptions(flags=flags, config_file=args.preprocessor_config)


def _add_output(group: "argparse._ActionsContainer") -> None:
    group.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")


class _progress:  # noqa: N801 - used as a function
    """A progress bar with the time left on standard error, as a callback (stage, done, total).

    It appears with the first stage, and only in a terminal: a log keeps the lines that say something.
    """

    def __init__(self, *, hidden: bool) -> None:
        text, count, spent, left = (
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        disable = hidden or not console.is_terminal
        self._bar = Progress(text, BarColumn(), count, spent, left, console=console, disable=disable, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_progress":
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage == "finish":  # from here the command either has its whole effect or had none
            _ignore_interrupts()
            return
        if stage not in self._tasks:
            self._bar.start()
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done, total=total)


def _warn_skipped(skipped: Sequence[Mapping[str, str]]) -> None:
    for entry in skipped[:LISTED]:
        sys.stderr.write(f"onnxvitq: skipped {entry['file']}: {entry['reason']}\n")
    if len(skipped) > LISTED:
        sys.stderr.write(f"onnxvitq: skipped {len(skipped) - LISTED} more, named in the JSON report\n")


# -------------------------------------------------------------------------------------------------------- sub-commands


def _inspect(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="onnxvitq inspect",
        description="Print what is found in a model, and what is not, with why.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path)
    _add_output(parser)
    args = parser.parse_args(arguments)
    from onnxvitq.pipeline import inspect

    described, blockmap = inspect(args.model)
    if args.json:
        sys.stdout.write(json.dumps(described, indent=2) + "\n")
        return 0
    console = _console()
    console.print(
        f"{args.model}: {described['blocks']} blocks, {described['attention']} attentions, "
        f"{described['linears']['found']} linears, {described['patch_embedding']['found']} patch embeddings, "
        f"{described['norms']} norms, {len(described['unmatched'])} unmatched",
        soft_wrap=True,
    )
    attentions = _table("Attention", "block", "attention", "heads", "keys", "head width", "MLPs")
    for block, found in zip(blockmap.blocks, blockmap.attentions, strict=True):
        mlps = ", ".join(f"{mlp.activation}" for mlp in block.mlps)
        attentions.add_row(
            str(block.index), found.name, *(str(size or "?") for size in (found.heads, found.tokens, found.width)), mlps
        )
    linears = _table("Linear layers", "role", "linear", "inputs", "outputs")
    for linear in blockmap.linears:
        linears.add_row(linear.role, linear.name, str(linear.in_features), str(linear.out_features))
    console.print(attentions, linears)
    if blockmap.unmatched:
        unmatched = _table("Unmatched", "operator", "node", "why it stays float")
        for entry in blockmap.unmatched:
            unmatched.add_row(entry.op, entry.name, entry.reason)
        console.print(unmatched)
    return 0


def _export(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="onnxvitq export", description="Export a torch model to ONNX, its outputs checked.", allow_abbrev=False
    )
    parser.add_argument(
        "spec", help="module:factory, file.py:factory, bundled name, Hugging Face folder or config.json, timm:NAME"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--static-batch", type=int, metavar="N", help="freeze the batch (default: dynamic)")
    parser.add_argument("--opset", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=_integer(0, 2**32 - 1), default=0)
    _add_output(parser)
    args = parser.parse_args(arguments)
    from onnxvitq.export.exporter import ExportOptions
    from onnxvitq.pipeline import export

    options = ExportOptions(
        exporter=args.exporter,
        dynamic_batch=args.static_batch is None,
        batch=1 if args.static_batch is None else args.static_batch,
        opset=args.opset,
        image_size=args.image_size,
        seed=args.seed,
    )
    result = export(args.spec, args.output, options)
    if args.json:
        sys.stdout.write(json.dumps({**asdict(result), "path": str(result.path)}, indent=2, default=str) + "\n")
    else:
        shapes = ", ".join(
            f"{spec.name} {['batch' if size is None else size for size in spec.shape]}" for spec in result.inputs
        )
        sys.stdout.write(
            f"{result.path}: {result.exporter}, opset {result.opset}, {shapes}, weights {result.weights}; "
            f"outputs within {result.max_difference:.1e} of torch (allowed {result.tolerance:.0e})\n"
        )
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="onnxvitq evaluate", description="Top-1, agreement and SQNR on labelled data.", allow_abbrev=False
    )
    parser.add_argument("float", type=Path, help="float ONNX model, the reference")
    parser.add_argument("int8", type=Path, help="quantized ONNX model")
    parser.add_argument("--data", type=Path, required=True, help="a folder a class, or .npz with x and y")
    parser.add_argument("--batch-size", type=_integer(1), default=32)
    parser.add_argument("--threads", type=_integer(0, 1024), default=0)
    _add_preprocessing(parser)
    _add_output(parser)
    args = parser.parse_args(arguments)
    from onnxvitq.pipeline import evaluate_models

    models, options = (args.float, args.int8), _preprocess(args)
    result, skipped = evaluate_models(models, args.data, options, batch=args.batch_size, threads=args.threads)
    _warn_skipped(skipped)
    if args.json:
        sys.stdout.write(json.dumps({**asdict(result), "skipped": skipped}, indent=2) + "\n")
    else:
        sys.stdout.write(
            f"{result.samples} samples: top-1 {result.top1_reference:.2f} % float, "
            f"{result.top1_quantized:.2f} % quantized; agreement {100 * result.agreement:.2f} %; "
            f"SQNR {result.sqnr_db:.2f} dB\n"
        )
    return 0


def _bench(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="onnxvitq bench",
        description="Interleaved latency, cold load and peak memory; the first model is the reference.",
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument(
        "--threads", type=_thread_counts, default=[1], help="one or several, as in 1,2; 0: one a core (default: 1)"
    )
    parser.add_argument("--runs", type=_integer(1), default=15)
    parser.add_argument("--batch-size", type=_integer(1), default=1, help="where the batch is dynamic")
    parser.add_argument("--seed", type=_integer(0, 2**32 - 1), default=0)
    parser.add_argument("--profile", action="store_true", help="time by operator, too")
    _add_output(parser)
    args = parser.parse_args(arguments)
    from onnxvitq.pipeline import bench_models

    threads = list(dict.fromkeys(args.threads))
    result = bench_models(
        args.models, batch=args.batch_size, threads=threads, runs=args.runs, seed=args.seed, profiled=args.profile
    )
    if args.json:
        operators = [{name: asdict(time) for name, time in one.items()} for one in result.operators]
        rows = {
            "threads": threads,
            "runs": args.runs,
            "batch": args.batch_size,
            "models": [{"threads": count, **asdict(one)} for count in threads for one in result.timings[count]],
            "footprints": [asdict(one) for one in result.footprints],
            "operators": operators,
        }
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print_benchmark(result, args)
    return 0


def _print_benchmark(result: "Benchmark", args: argparse.Namespace) -> None:
    console = _console()
    for threads, timings in result.timings.items():
        title = f"{threads or 'one a core:'} thread(s), batch {args.batch_size}, {args.runs} runs"
        table = _table(title, "model", "median ms", "quartiles ms", "times the first")
        for timing in timings:
            spread = f"{timing.lower_ms:.2f} to {timing.upper_ms:.2f}"
            table.add_row(timing.model, f"{timing.median_ms:.2f}", spread, f"{timing.speedup:.2f}")
        console.print(table)
    first = result.footprints[0]
    table = _table("In a fresh process", "model", "cold load ms", "peak MB", "load, of the first", "peak, of the first")
    for one in result.footprints:
        shares = (f"{one.load_ms / first.load_ms:.0%}", f"{one.peak_mb / first.peak_mb:.0%}")
        table.add_row(one.model, f"{one.load_ms:.0f}", f"{one.peak_mb:.1f}", *shares)
    console.print(table)
    if result.operators:
        columns = [f"{model.name} {unit}" for model in args.models for unit in ("ms", "nodes")]
        table = _table("Time by operator", "operator", *columns)
        for name in dict.fromkeys(name for one in result.operators for name in one):
            times = [one.get(name) for one in result.operators]
            table.add_row(name, *(text for time in times for text in _cells(time)))
        totals = [sum(time.ms for time in one.values()) for one in result.operators]
        table.add_row("all", *(text for total in totals for text in (f"{total:.2f}", "")))
        console.print(table)


def _cells(time: "OperatorTime | None") -> tuple[str, str]:
    return ("", "") if time is None else (f"{time.ms:.2f}", str(time.nodes))


def _thread_counts(text: str) -> list[int]:
    """An option's type: whole numbers between commas."""
    parse = _integer(0, 1024)
    return [parse(part) for part in text.split(",")]


def _integer(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """An option's type: a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {value}")
        return value

    return parse


def _share(text: str) -> float:
    """An option's type: 0.5% or 0.005."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.5%, got {text!r}") from error


def _megabytes(text: str) -> float:
    """An option's type: a size, 12MB, 500kB or bytes, in MB."""
    units = {"gb": 1e3, "mb": 1.0, "kb": 1e-3, "b": 1e-6}
    number = text.lower().rstrip("bgkm")
    unit = text.lower()[len(number) :]
    try:
        return float(number) * units[unit or "b"]
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 12MB, got {text!r}") from error


def _table_file(text: str) -> Path:
    """An option's type: a file whose suffix says how a table is written."""
    if Path(text).suffix not in (".csv", ".json"):
        raise argparse.ArgumentTypeError(f"expected a .csv or a .json file, got {text!r}")
    return Path(text)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "inspect": _inspect,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
}
