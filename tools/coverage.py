"""Vision Transformers of transformers through both of torch's exporters: what onnxvitq finds of what torch computes.

    python tools/coverage.py [--only NAME] [--exporter both] [--folder coverage] [--reuse] [--write [NAME]]

For each architecture (coverage_architectures.py) and exporter: export, quantize on random normal inputs, and hold what was
found against what torch itself ran (coverage_counts.py). A batch of any size where the exporter can, else a batch of one.
Random weights: this measures what is found and which kernels run it, never accuracy. Prints a row as each is done. With
--folder the graphs stay there, each with a .json of the expected counts, and --reuse takes them from there. Exit status 1
when anything expected is missing. Needs torch, transformers and scipy.
"""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from coverage_architectures import ARCHITECTURES
from coverage_counts import Expected, Layer, count
from coverage_models import Architecture, Wrapped, build, example
from rich.console import Console
from tables import Results, Table, columns, finish, parser_of, provenance

from onnxvitq import api
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ExportError, OnnxVitqError
from onnxvitq.export.foreign import quiet
from onnxvitq.export.torch_exporters import EXPORTERS, Request, run_exporter

SHORT = {"dynamo": "dynamo", "torchscript": "ts"}
INPUT = "image"
SAMPLES = 8
OTHER_BATCH = 5  # none that a graph was made, calibrated or compared with
PARITY = 1e-3  # of the largest output: float32 sums in another order; a wrong graph is off by 1e-1
PART = re.compile(r"_part\d+")
LONGEST = 120  # letters of an exporter's message
COLUMNS = (
    *("architecture", "exporter", "batch", "attentions", "attention products", "linears", "linears on integer kernels"),
    *("patch embeddings", "SQNR dB", "optimised against plain", "notes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One exported graph, or why there is none; ``fixed`` says why it takes a batch of one only."""

    path: Path
    dynamic: bool
    expected: Expected
    failure: str = ""
    fixed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table, and whether everything expected is there."""

    cells: tuple[str, ...]
    passed: bool
    quantized: bool


# ------------------------------------------------------------------------------------------------------------- graphs


def export(architecture: Architecture, exporter: str, folder: Path, reuse: bool) -> Exported:
    """The graph of one architecture by one exporter, equal to torch, or the exporter's error."""
    path = folder / f"{architecture.name}_{SHORT[exporter]}.onnx"
    record = path.with_suffix(".json")
    if reuse and record.exists():
        known = json.loads(record.read_text())
        return Exported(path=path, **{**known, "expected": Expected.from_dict(known["expected"])})
    with quiet():
        module = build(architecture)
        expected = count(module, (example(architecture, 2, 1), example(architecture, 2, 2)))
    result = _try_both(architecture, exporter, module, path, expected)
    values = {key: value for key, value in asdict(result).items() if key != "path"}
    record.write_text(json.dumps(values, indent=1))
    return result


def _try_both(architecture: Architecture, exporter: str, module: Wrapped, path: Path, expected: Expected) -> Exported:
    """With a batch of any size, and where that fails or is not equal to torch, with a batch of one."""
    failure = ""
    for dynamic in (True, False) if architecture.batched else (False,):
        inputs = (example(architecture, 2 if dynamic else 1, 3),)
        with quiet(), torch.no_grad():
            outputs = module(*inputs)
        request = Request(
            module=module,
            inputs=inputs,
            input_names=(INPUT,),
            output_names=tuple(f"output_{index}" for index in range(len(outputs))),
            dynamic_batch=dynamic,
            opset=None,
        )
        try:
            with tempfile.TemporaryDirectory() as scratch:
                model = run_exporter(exporter, request, Path(scratch), architecture.name)
            onnx.save(model, path)
            if not architecture.random:
                _check_equal(path, module, architecture, dynamic)
        except ExportError as error:
            failure = failure or error.problem.removeprefix(f"the {exporter} exporter failed: ")
        else:
            return Exported(path=path, dynamic=dynamic, expected=expected, fixed=failure)
    path.unlink(missing_ok=True)
    return Exported(path=path, dynamic=False, expected=expected, failure=failure)


def _check_equal(path: Path, module: Wrapped, architecture: Architecture, dynamic: bool) -> None:
    """Raise an ExportError where the graph does not give what torch gives, at another batch than the exporter saw."""
    image = example(architecture, OTHER_BATCH if dynamic else 1, 4)
    with quiet(), torch.no_grad():
        expected = [output.numpy() for output in module(image)]
    try:
        outputs = run(path, image.numpy())
    except Exception as error:
        raise ExportError(path.name, f"onnxruntime refuses the graph: {_first_line(error, path)}") from error
    for output, wanted in zip(outputs, expected, strict=True):
        difference = np.abs(output - wanted).max() / np.abs(wanted).max() if output.shape == wanted.shape else np.inf
        if not difference <= PARITY:
            raise ExportError(path.name, f"the exported graph differs from torch by {difference:.1e}")


def run(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model, in onnxruntime as a user would open it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: image})


def _first_line(error: BaseException, path: Path) -> str:
    """The first line of an error's text, without the folder of this machine."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text.removeprefix("[ONNXRuntimeError] : ").replace(str(path), path.name)


# ----------------------------------------------------------------------------------------------------- found, expected


def found_layers(found: Sequence[Any], in_float: set[str]) -> Counter[tuple[int, int, bool]]:
    """(I, O, on an integer kernel) of each weight, the parts of a packed projection put together again."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for linear in found:
        groups.setdefault((PART.sub("", linear.name), linear.in_features), []).append(linear)
    return Counter(
        (inputs, sum(part.out_features for part in parts), not any(part.name in in_float for part in parts))
        for (_, inputs), parts in groups.items()
    )


def take(layers: Sequence[Layer], available: Counter[tuple[int, int, bool]]) -> tuple[int, int, list[Layer]]:
    """Match expected layers by their weight's shape and take them away: how many found, how many integer, the missing."""
    found, integer, missing = 0, 0, []
    for layer in layers:
        for kernel in (True, False):
            key = (layer.inputs, layer.outputs, kernel)
            if available[key]:
                available[key] -= 1
                found, integer = found + 1, integer + kernel
                break
        else:
            missing.append(layer)
    return found, integer, missing


def measure(architecture: Architecture, exporter: str, exported: Exported) -> Row:
    """Quantize one graph and compare what was found with what torch computes."""
    head = (architecture.name, exporter, "dynamic" if exported.dynamic else "static")
    if exported.failure:
        cells = (architecture.name, exporter, "", *[""] * 7, f"not exported: {exported.failure[:LONGEST]}")
        return Row(cells=cells, passed=True, quantized=False)
    images = example(architecture, SAMPLES, 5).numpy()
    if not architecture.batched:
        images = np.concatenate([example(architecture, 1, 5 + number).numpy() for number in range(SAMPLES)])
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "int8.onnx"
        try:
            config = QuantConfig(objective="minmax", threads=1)
            result = api.quantize(exported.path, images, output, config)
            blockmap = api.inspect(exported.path).blockmap
        except OnnxVitqError as error:
            problem = f"refused: {str(error).removeprefix(f'{exported.path}: ')}"
            return Row(cells=(*head, *[""] * 7, problem), passed=bool(architecture.refused), quantized=False)
        except Exception as error:  # noqa: BLE001 - a crash is a row that fails, and the next architecture's turn
            problem = f"crashed: {type(error).__name__}: {_first_line(error, exported.path)}"
            return Row(cells=(*head, *[""] * 7, problem), passed=False, quantized=False)
        written = _check_written(output, architecture, exported.dynamic)
    report, expected = result.report.to_dict(), exported.expected
    floats = {layer.name for layer in (*result.audit.linears.in_float, *result.audit.patch_embedding.in_float)}
    available = found_layers(blockmap.linears, floats)
    linears, integer, missing = take(expected.linears, available)
    patches, _, missing_patches = take(expected.patch_embeddings, available)
    take(expected.constant_linears, available)
    products, others = report["attention_products"], report["other_products"]
    # A softmax over another axis, or one that is made hard, is found and quantized as a product outside attention.
    loose = max(others["found"] - len(expected.other_products) - len(expected.stacks), 0)
    loose = min(loose, max(expected.products - products["found"], 0))
    found = products["found"] + loose
    notes = [
        f"expected a refusal: {architecture.refused}" if architecture.refused else "",
        f"no open batch: {exported.fixed[:LONGEST]}" if exported.fixed else "",
        written,
        "" if report["audit_passed"] else "a planned layer runs in float",
        _more("attention products in float", products["found"] - products["integer_kernels"]),
        _more("of the attention products found outside an attention", loose),
        _more("linears in float", linears - integer),
        _missing_note("linear", missing),
        _missing_note("patch embedding", missing_patches),
        *(_reasons(report["unmatched"]) if missing or missing_patches or found < expected.products else ()),
        _more("weights found beyond those that the image reaches", available.total()),
        _more("attention products found beyond those that the image reaches", products["found"] - expected.products),
        _more("products outside attention", len(expected.other_products)),
        _more("products with a stack of constants", len(expected.stacks)),
        _more("other convolutions", expected.convolutions),
    ]
    cells = (
        *head,
        f"{min(report['attention'], expected.attentions)} of {expected.attentions}",
        f"{min(found, expected.products)} of {expected.products}",
        f"{linears} of {len(expected.linears)}",
        str(integer),
        f"{patches} of {len(expected.patch_embeddings)}",
        f"{report['compare']['sqnr_db']:.1f}",
        f"{report['compare']['optimised_vs_plain']:.1e}",
        "; ".join(note for note in notes if note),
    )
    complete = not missing and not missing_patches and found >= expected.products
    passed = complete and not written and report["audit_passed"] and not architecture.refused
    return Row(cells=cells, passed=passed, quantized=True)


def _check_written(output: Path, architecture: Architecture, dynamic: bool) -> str:
    """What is wrong with the written model; empty when it is valid and runs at a batch that it was not calibrated with."""
    try:
        onnx.checker.check_model(output, full_check=True)
        outputs = run(output, example(architecture, OTHER_BATCH if dynamic else 1, 6).numpy())
    except Exception as error:  # noqa: BLE001 - the checker's and onnxruntime's errors have no common type
        return f"the written model fails: {_first_line(error, output)}"
    return "" if all(np.isfinite(value).all() for value in outputs) else "the written model gives NaN or infinity"


def _missing_note(kind: str, missing: Sequence[Layer]) -> str:
    if not missing:
        return ""
    names = ", ".join(
        f"{layer.module.removeprefix('model.')} ({layer.inputs}x{layer.outputs})" for layer in missing[:4]
    )
    return f"{kind}s not found: {len(missing)}: {names}" + (", ..." if len(missing) > 4 else "")


def _reasons(unmatched: Sequence[dict[str, str]]) -> Iterator[str]:
    counts = Counter((entry["op"], entry["reason"]) for entry in unmatched)
    yield from (f"{op} x {number}: {reason}" for (op, reason), number in counts.most_common(4))


def _more(what: str, number: int) -> str:
    return f"{what}: {number}" if number > 0 else ""


# --------------------------------------------------------------------------------------------------------------- table


def results_of(rows: Sequence[Row]) -> Results:
    """All rows, and what they come to."""
    quantized = [row for row in rows if row.quantized]
    names = {row.cells[0] for row in quantized if row.passed}
    about = (
        f"{len(rows)} graphs: {len(quantized)} quantized, {sum(not row.passed for row in rows)} with something missing; "
        f"{len(names)} architectures with everything found from at least one exporter."
    )
    table = Table(columns=columns(*COLUMNS), rows=[row.cells for row in rows])
    notes = [f"{SAMPLES} random images, scales by min-max."]
    return Results(
        name="coverage", tables=[table], made=provenance(["torch", "transformers"]), about=[about], notes=notes
    )


def main() -> int:
    """Go through the architectures, print, and say whether everything expected was found."""
    parser = parser_of(__doc__, "coverage")
    parser.add_argument("--only", action="append", metavar="NAME", help="architectures, by name or pattern; repeatable")
    parser.add_argument("--exporter", choices=(*EXPORTERS, "both"), default="both")
    parser.add_argument("--folder", type=Path, help="keep the exported graphs here")
    parser.add_argument("--reuse", action="store_true", help="take graphs from the folder where they are there")
    args = parser.parse_args()
    exporters = tuple(EXPORTERS) if args.exporter == "both" else (args.exporter,)
    chosen = [one for one in ARCHITECTURES if not args.only or any(fnmatch(one.name, name) for name in args.only)]
    console, rows = Console(), []
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole encoder layer, which no exporter knows
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for architecture in chosen:
            for exporter in exporters:
                start = time.perf_counter()
                rows.append(measure(architecture, exporter, export(architecture, exporter, folder, args.reuse)))
                show(console, rows[-1], time.perf_counter() - start)
    results = results_of(rows)
    console.print(results.about[0])
    if args.write:
        finish(results, args.write)
    return 0 if all(row.passed for row in rows) else 1


def show(console: Console, row: Row, seconds: float) -> None:
    """One row as it is done."""
    name, exporter, batch, attentions, products, linears, integer, patches, sqnr, drift, notes = row.cells
    figures = f"products {products}, linears {linears} ({integer} integer), patches {patches}, {sqnr} dB, {drift}"
    state = "[green]ok[/]" if row.passed else "[red]no[/]"
    found = f"attentions {attentions}, {figures}, " if row.quantized else ""
    line = f"{state} {name:24} {exporter:11} {batch:7} {found}{seconds:.1f} s"
    console.print(line, highlight=False, soft_wrap=True)
    if notes:
        console.print(f"      {notes}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
