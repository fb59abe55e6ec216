"""The tables that the tools print and write: rows of raw values, columns that say how a value is printed, and provenance.

A tool makes a ``Results`` of one table or more and hands it to ``finish``, which prints it and, with the tool's --write, writes
tools/results/NAME.md and, with the raw figures, tools/results/NAME.json. Both say how they were made: the commit, the whole
command line, the versions of the packages and the processor.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from onnxvitq.report.build import environment
from onnxvitq.report.records import to_dict

TOOLS = Path(__file__).parent
ROOT = TOOLS.parent.resolve()
RESULTS = TOOLS / "results"
PACKAGES = ("onnxvitq", "onnx", "onnxruntime", "numpy", "python")
MEASURED = "recorded by the run"
UNKNOWN = "not recorded"
FIELDS = ("provenance", "commit", "command", "versions", "processor")


class Shown(NamedTuple):
    """A value that is printed otherwise than its column is."""

    value: Any
    form: str


class Column(NamedTuple):
    """A title, and the form of its values for ``str.format``: "{:.2f}", or "{} of {}" for values that are tuples."""

    title: str
    form: str = "{}"


def printed(value: Any, form: str) -> str:
    """A cell's text; nothing for None, and text as it is."""
    if isinstance(value, Shown):
        value, form = value
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("|", "/")
    return form.format(*value) if isinstance(value, tuple) else form.format(value)


def raw(value: Any) -> Any:
    """A cell as JSON holds it: numbers as they were measured."""
    if isinstance(value, Shown):
        value = value.value
    if isinstance(value, tuple):
        return [raw(part) for part in value]
    return value.item() if hasattr(value, "item") else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns.

    Attributes:
        columns: a title and a form each.
        rows: one tuple of cells a row, as many as there are columns; rows may be added as they are measured.
        title: a heading above the table; none where it is empty.
        about: a sentence between the heading and the table.
        notes: lines below the table.
    """

    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    title: str = ""
    about: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Add a row and print it, so that a long run shows how far it is.

        Raises:
            ValueError: another number of cells than of columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} cells, got {len(cells)}")
        self.rows.append(cells)
        print(self.line(cells), file=sys.stderr, flush=True)

    def line(self, cells: Sequence[Any]) -> str:
        """One row as Markdown."""
        return row_of([printed(cell, column.form) for cell, column in zip(cells, self.columns, strict=True)])

    def markdown(self) -> Iterator[str]:
        """Lines of the heading, the table and its notes."""
        if self.title:
            yield from (f"#### {self.title}", "")
        if self.about:
            yield from (self.about, "")
        yield row_of([column.title for column in self.columns])
        yield "|" + "---|" * len(self.columns)
        yield from (self.line(cells) for cells in self.rows)
        if self.notes:
            yield from ("", *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "title": self.title,
            "about": self.about,
            "columns": [column.title for column in self.columns],
            "rows": [[raw(cell) for cell in cells] for cells in self.rows],
            "notes": list(self.notes),
        }


def row_of(cells: Sequence[str]) -> str:
    """Cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def columns(*titles: str | tuple[str, str]) -> tuple[Column, ...]:
    """Columns of titles, or of titles with forms."""
    return tuple(Column(title) if isinstance(title, str) else Column(*title) for title in titles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How results were made.

    Attributes:
        commit: of the source tree; ", changed" is added where the package or the tools differed from it.
        command: the whole command line.
        versions: package -> version.
        processor: its name.
        provenance: whether the run recorded this, or somebody added it later.
    """

    commit: str
    command: str
    versions: Mapping[str, str]
    processor: str
    provenance: str = MEASURED

    def line(self) -> str:
        """One line of Markdown."""
        number, _, changed = self.commit.partition(",")
        short = f"{number[:12]}{changed}"
        known = [f"{name} {version_}" for name, version_ in self.versions.items() if version_ != UNKNOWN]
        if len(known) < len(self.versions):
            known.append(f"other versions {UNKNOWN}" if known else f"versions {UNKNOWN}")
        processor = f"processor {UNKNOWN}" if self.processor == UNKNOWN else self.processor
        note = "" if self.provenance == MEASURED else f" ({self.provenance})"
        return f"`{self.command}` at commit {short}; {', '.join(known)}; {processor}{note}"

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it: each of ``FIELDS``."""
        return {name: dict(self.versions) if name == "versions" else getattr(self, name) for name in FIELDS}


def provenance(others: Mapping[str, str] | Sequence[str] = ()) -> Provenance:
    """Of this very run; ``others``: further packages, by name or with their versions."""
    known = to_dict(environment(0))
    versions = {name: str(known[name]) for name in PACKAGES if name in known}
    versions |= {name: installed(name) for name in PACKAGES if name not in versions}
    versions |= dict(others) if isinstance(others, Mapping) else {name: installed(name) for name in others}
    return Provenance(commit=commit(), command=command_line(), versions=versions, processor=str(known["processor"]))


def installed(package: str) -> str:
    """The version of a package, without a build tag."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The checkout's commit; "unknown" outside of one."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "onnxvitq", "tools", "models", ":!tools/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}, changed" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def command_line() -> str:
    """This process's, the script named from the checkout's root."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", name, *sys.argv[1:]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that one run of a tool measured.

    Attributes:
        name: of its files in tools/results.
        tables: in the order in which they are printed.
        made: how it was made.
        about: a paragraph each, above the tables.
        notes: a paragraph each, below them.
    """

    name: str
    tables: Sequence[Table]
    made: Provenance
    about: Sequence[str] = ()
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The page."""
        paragraphs = [self.made.line(), *self.about]
        paragraphs += ["\n".join(table.markdown()) for table in self.tables]
        return "\n\n".join([*paragraphs, *self.notes]) + "\n"

    def to_json(self) -> str:
        """The raw figures."""
        document = {
            "name": self.name,
            **self.made.to_dict(),
            "about": list(self.about),
            "tables": [table.to_dict() for table in self.tables],
            "notes": list(self.notes),
        }
        return compact(document) + "\n"

    def write(self, folder: Path = RESULTS) -> None:
        """Both files."""
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        (folder / f"{self.name}.json").write_text(self.to_json(), encoding="utf-8")


def compact(document: dict[str, Any]) -> str:
    """JSON with a line for each row of a table: a table of two hundred rows stays a page that can be compared."""
    rows: list[list[Any]] = []
    for table in document["tables"]:
        rows.append(table["rows"])
        table["rows"] = f"rows of table {len(rows)}"
    text = json.dumps(document, indent=1, ensure_ascii=False)
    for number, lines in enumerate(rows, 1):
        inner = ",\n    ".join(json.dumps(line, ensure_ascii=False) for line in lines)
        text = text.replace(f'"rows of table {number}"', f"[\n    {inner}\n   ]" if lines else "[]", 1)
    return text


def parser_of(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the tool's first sentence and --write, which takes another name for the files than the tool's own."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--write", nargs="?", const=name, metavar="NAME", help=f"into tools/results/NAME.md and .json ({name})"
    )
    return parser


def finish(results: Results, write: str | None) -> None:
    """Print the page; write both files where that was asked."""
    print(results.markdown())
    if write:
        replace(results, name=write).write()
