"""The page that documents the keys of the JSON, written from the records: their types and their ``Attributes:`` sections."""

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnxvitq.report.model_records import EvaluationReport, InspectionReport
from onnxvitq.report.report import Report

ROOTS = {
    Report: "What `--report FILE` writes, `--json` prints, and `result.report.to_dict()` gives.",
    InspectionReport: "What `inspect --json` prints, and `inspect(model).report.to_dict()` gives.",
    EvaluationReport: "What `evaluate --json` prints, and `evaluate(models, data).to_dict()` gives.",
}
INTRODUCTION = """# Report

Every key of the JSON that commands write and print. In Python the same are attributes of frozen records, as in
`result.report.compare.sqnr_db`, under the names of the [Python reference](python.md); `to_dict()` gives the structure of this
page. `report_version` is raised when a key goes or changes its meaning; keys may be added at any time. A step from outside the
package adds a section under a key of its own, and figures of its own to its parts.
"""
HEAD = "| key | value | meaning |\n|---|---|---|\n"
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything", object: "anything"}
ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def report_page() -> str:
    """The page, a table for each record: those that commands give first, then what these are made of."""
    text, known = INTRODUCTION, list[type]()
    for root, where in ROOTS.items():
        text += f"\n## {root.__name__}\n\n{where}\n\n{table_of(root)}"
        _collect(root, known)
    text += "\n## Records within these\n"
    for record in known:
        text += f"\n### {record.__name__}\n\n{_summary(record)}\n\n{table_of(record)}"
    return text


def table_of(record: type) -> str:
    """The keys of a record with their types and meanings; those of inline records among them, once."""
    return HEAD + "".join(f"| `{key}` | {kind} | {meaning} |\n" for key, (kind, meaning) in dict(_rows(record)).items())


def _rows(record: type) -> Iterator[tuple[str, tuple[str, str]]]:
    meanings, hints = _meanings(record), get_type_hints(record)
    for item in fields(record):
        hint = hints[item.name]
        if item.metadata.get("inline") and isinstance(hint, type) and is_dataclass(hint):
            yield from _rows(hint)
        elif item.metadata.get("inline"):
            yield "...", ("more keys", _cell(meanings[item.name]))
        else:
            key = re.sub(r"\{self\.(\w+)\}", r"<\1>", item.metadata.get("key", item.name))
            nothing = "absent" if item.metadata.get("optional") else "null"
            yield key, (_kind(hint, item), _cell(meanings[item.name]).replace("None", nothing))


def _kind(hint: Any, item: "Field[Any] | None" = None) -> str:
    """The JSON value of a type, in a few words."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        known = [_kind(member) for member in members if member is not types.NoneType]
        if types.NoneType in members:
            known.append("absent" if item is not None and item.metadata.get("optional") else "null")
        return ", ".join(known[:-1]) + f" or {known[-1]}"
    if origin is tuple:
        return f"list of {_kind(members[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"object, each value {_kind(members[1])}"
    if isinstance(hint, type) and is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return WORDS[hint]


def _collect(record: type, known: list[type]) -> None:
    """The records that a record's tables link to, in the order in which they do."""
    hints = get_type_hints(record)
    for item in fields(record):
        for part in _records_in(hints[item.name]):
            if part not in known and not item.metadata.get("inline"):
                known.append(part)
            _collect(part, known)


def _records_in(hint: Any) -> Iterator[type]:
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for member in get_args(hint):
        yield from _records_in(member)


def _summary(record: type) -> str:
    return _cell(inspect.cleandoc(record.__doc__ or "").partition("\n\nAttributes:")[0])


def _meanings(record: type) -> dict[str, str]:
    """What the docstrings of a record and of those it inherits from say of each field."""
    known: dict[str, str] = {}
    for base in reversed(record.__mro__):
        documented = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        known |= {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(documented)}
    return known


def _cell(text: str) -> str:
    """As a cell of a table: double backquotes are for docstrings, a bar would end the cell."""
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", r"\|")
