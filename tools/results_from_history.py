"""Give a table that a tool wrote before tools/tables.py its provenance and its figures as JSON, from what the history says.

    python tools/results_from_history.py [NAME ...]

Each of ``TABLES`` is read as the named commit wrote it; that commit is the table's, its command is the one that README and docs
stated beside it, and versions and processor are those that the page itself names. What no one wrote down is "not recorded".
A table that a tool has written since is left as it is. Figures are never changed: cells are printed as they were.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tables import MEASURED, RESULTS, ROOT, UNKNOWN, Column, Provenance, Results, Shown, Table

ADDED = "added afterwards from the history"
AIQVIT = "python tools/aiqvit_ablation.py"
# Name -> (the commit that wrote the table, the command).
TABLES: dict[str, tuple[str, str]] = {
    "ablation": (
        "33e44f3",
        'python tools/ablation.py --settings min-max "without channels" "without online-channels" "without softmax" '
        '"without outer-linears" "without scales" "without weights" "with bias" --write',
    ),
    "aiqvit": ("110c64b", f'{AIQVIT} --rows "method aiqvit" "closed form" plain --seeds 0 1 2 3 4 5 --write aiqvit'),
    "aiqvit_branches": (
        "479d012",
        f'{AIQVIT} --models outliers --bits w3a3 --rows bare "bare + branches" "bare, scales learned" '
        '"bare, scales and branches learned (the paper\'s)" --write aiqvit_branches',
    ),
    "aiqvit_parts": (
        "479d012",
        f'{AIQVIT} --bits w3a3 --rows plain "plain + branches" "plain, scales learned" "plain, scales and branches learned" '
        '"closed form" "closed form + branches" "all parts" "without branches" "without mixtures" '
        '"without the focusing quantizer" "without the curriculum" "without dropping quantization" --write aiqvit_parts',
    ),
    "aiqvit_ranks": (
        "c1294c4",
        f'{AIQVIT} --models outliers --bits w3a3 --rows "rank 2 everywhere" "rank 8 everywhere" "rank 20 everywhere" '
        '"by energy, 10 % of the weights" "searched by gradients, 10 % of the weights" --write aiqvit_ranks',
    ),
    "aiqvit_wide": (
        "110c64b",
        f'{AIQVIT} --bits w6a6 w4a8 --rows "method aiqvit" "closed form" --seeds 0 --write aiqvit_wide',
    ),
    "bench_accuracy": (
        "fe2896b",
        "python tools/bench_accuracy.py --samples 16 64 --peer-python PYTHON_WITH_NNCF PYTHON_WITH_AIMET PYTHON_WITH_QUARK "
        "--tables --write",
    ),
    "branch_latency": ("1ee04ff", "python tools/branch_latency.py --folder vit_s --write"),
    "choosing_cost": ("33e44f3", "python tools/fit_cost.py --geometry S --images 32 64 --average-bits 5 --write"),
    "compare_quantize_static": ("17a839a", "python tools/compare_quantize_static.py --repeats 1 --write"),
    "coverage": ("bd5afba", "python tools/coverage.py --write"),
    "domain_shift": ("bbb9799", "python tools/domain_shift.py --write"),
    "file_sizes": (
        "eacd54e",
        "python tools/file_sizes.py --peer-python PYTHON_WITH_NNCF PYTHON_WITH_AIMET PYTHON_WITH_QUARK --write",
    ),
    "fit_cost": (
        "f2a8b22",
        "python tools/fit_cost.py --geometry S --write; python tools/fit_cost.py --geometry B --images 128 --write",
    ),
    "focus_interval": ("9ed2743", "python tools/focus_interval.py --samples 16 --write"),
    "fuzz": ("0510f6c", "python tools/fuzz.py --folder coverage --write"),
    "low_bits": ("a2d4779", "python tools/low_bits.py --write"),
    "max_drop": ("689b198", "python tools/max_drop.py --judged 0 --write"),
    "mixed_precision": ("1742077", "python tools/mixed_precision.py --worth 0.75 --write"),
    "objectives": ("d507e09", "python tools/objective_table.py --write"),
    "ocr": ("c55fe33", "python tools/ocr_recogniser.py --write"),
    "packed_size": ("17a839a", "python tools/packed_size.py --write"),
    "peers_speed": ("1e07108", "python tools/bench_peers.py --threads 1 --peer-python PYTHON_WITH_NNCF --write"),
    "rotation": ("372bafa", "python tools/rotation.py --bits w8a8 --write"),
    "vit_s": ("17a839a", "python tools/vit_s.py --write"),
}
PACKAGES = "onnxvitq|onnxruntime|onnx|numpy|torch|transformers|nncf|amd-quark|aimet-onnx|rapidocr-onnxruntime|Python"
VERSION = re.compile(rf"(?<![\w-])({PACKAGES}) (\d+(?:\.\d+)+)")
PROCESSOR = re.compile(r"AMD EPYC|Intel\(R\) Xeon\(R\) Processor")
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?"
ONE = re.compile(rf"({NUMBER})(?: (?:%|kB))?")
TWO = re.compile(rf"({NUMBER}) (?:of|to|\+-) ({NUMBER})(?: linears)?")
UNEQUAL = "* 16 samples"  # margins over tools that were not given 16 samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heading, a paragraph or a table of a page, by its first line."""

    lines: list[str]

    @property
    def kind(self) -> str:
        """One of "heading", "table", "text"."""
        return {"#": "heading", "|": "table"}.get(self.lines[0][0], "text")

    @property
    def text(self) -> str:
        """A paragraph; list items stay lines."""
        return "\n".join(self.lines)


def blocks(page: str) -> Iterator[Block]:
    """What empty lines divide."""
    for part in re.split(r"\n\s*\n", page.strip()):
        yield Block(lines=part.splitlines())


def cell(text: str) -> Any:
    """A number, or two, or text, printed as it was; None where there is nothing."""
    text = text.strip()
    if not text:
        return None
    for pattern in (ONE, TWO):
        found = pattern.fullmatch(text)
        if found is not None:
            numbers = tuple(float(part) if set(part) & set(".e") else int(part) for part in found.groups())
            return Shown(numbers[0] if len(numbers) == 1 else numbers, text)
    return text


def cells(line: str) -> list[str]:
    """The texts between the bars."""
    return line.strip().removeprefix("|").removesuffix("|").split("|")


def table_of(block: Block, title: str, about: str) -> Table:
    """A table of the page."""
    head, _, *rows = block.lines
    columns = tuple(Column(text.strip()) for text in cells(head))
    padded = ([*cells(row), *[""] * len(columns)][: len(columns)] for row in rows)
    return Table(columns=columns, rows=[tuple(map(cell, row)) for row in padded], title=title, about=about)


def parsed(name: str, page: str, made: Provenance) -> Results:
    """A page as results: text before the first table is about all, text between tables belongs to one of them."""
    about: list[str] = []
    notes: list[str] = []
    tables: list[Table] = []
    title = pending = ""
    parts = list(blocks(page))
    last = max(index for index, block in enumerate(parts) if block.kind == "table")
    for index, block in enumerate(parts):
        if block.kind == "table":
            tables.append(table_of(block, title, pending))
            title = pending = ""
        elif block.kind == "heading":
            title = block.text.lstrip("# ")
        elif block.text.startswith("* ") or block.text.startswith("Judged on"):
            kept = [line for line in block.lines if not line.startswith(UNEQUAL)]
            tables[-1].notes.extend(kept)
        elif title:
            pending = block.text
        elif "; float " in block.text:
            title = block.text
        else:
            (notes if index > last else about).append(block.text)
    return Results(name=name, tables=tables, made=made, about=about, notes=notes)


def made_by(commit: str, command: str, page: str) -> Provenance:
    """What the history and the page say."""
    versions = dict(VERSION.findall(page))
    named = {name: versions.pop(name, UNKNOWN) for name in ("onnxvitq", "onnx", "onnxruntime", "numpy")}
    processor = PROCESSOR.search(page)
    return Provenance(
        commit=git("rev-parse", commit),
        command=command,
        versions=named | versions,
        processor=UNKNOWN if processor is None else processor[0],
        provenance=ADDED,
    )


def git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.rstrip("\n")


def measured_since(name: str) -> bool:
    """Whether a tool has written the table with its provenance."""
    path = RESULTS / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["provenance"] == MEASURED


def main() -> None:
    """Convert the named tables, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
    for name in parser.parse_args().names or list(TABLES):
        if measured_since(name):
            print(f"{name}: written by its tool since; left as it is")
            continue
        commit, command = TABLES[name]
        page = git("show", f"{commit}:tools/results/{name}.md")
        results = parsed(name, page, made_by(commit, command, page))
        results.write()
        print(f"{name}: {sum(len(table.rows) for table in results.tables)} rows of {len(results.tables)} tables")


if __name__ == "__main__":
    main()
