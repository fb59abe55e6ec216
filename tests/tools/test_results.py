"""Every table of tools/results says how it was made, and has its figures beside it as JSON; the printer does so."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_from_history import ADDED, cell, parsed
from tables import FIELDS, MEASURED, UNKNOWN, Provenance, Results, Shown, Table, columns, provenance, raw

TOOLS = Path(__file__).parents[2] / "tools"
PAGES = sorted((TOOLS / "results").glob("*.md"))
DOCUMENTS = sorted((TOOLS / "results").glob("*.json"))
PACKAGES = {"onnxvitq", "onnx", "onnxruntime", "numpy"}


def complaints(document: dict[str, Any], page: str | None) -> Iterator[str]:
    """What a file of figures lacks; ``page``: the table in Markdown, where there is one."""
    for name in FIELDS:
        if not document.get(name):
            yield f"no {name}"
            return
    if not re.fullmatch("[0-9a-f]{40}(, changed)?", document["commit"]):
        yield "the commit is no whole hash"
    if not document["command"].startswith("python tools/") or "..." in document["command"]:
        yield "the command is not whole"
    if not document["versions"].keys() >= PACKAGES:
        yield "versions are missing"
    if document["provenance"] not in {MEASURED, ADDED}:
        yield "the provenance is neither of the two"
    if document["provenance"] == MEASURED and UNKNOWN in {document["processor"], *document["versions"].values()}:
        yield "a run did not record what it runs on"
    if page is not None:
        yield from complaints_of_page(document, page)


def complaints_of_page(document: dict[str, Any], page: str) -> Iterator[str]:
    """What a page says otherwise than its file of figures."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith("|---")]
    if len(lines) != sum(1 + len(table["rows"]) for table in document["tables"]):
        yield "other rows than the page's"
    if f"`{document['command']}`" not in page or document["commit"][:12] not in page:
        yield "the page does not say how it was made"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_figures_say_how_they_were_made(path: Path) -> None:
    page = path.with_suffix(".md")
    assert list(complaints(json.loads(path.read_text()), page.read_text() if page.exists() else None)) == []


def test_every_page_has_its_figures() -> None:
    assert {path.stem for path in PAGES} <= {path.stem for path in DOCUMENTS}
    assert len(PAGES) > 20


MADE = Provenance(
    commit="0" * 40,
    command="python tools/some.py --write",
    versions=dict.fromkeys(PACKAGES, "1.0"),
    processor="a processor",
)


def results(made: Provenance = MADE) -> Results:
    table = Table(
        columns=columns("model", ("dB", "{:.1f}"), ("kernels", "{} of {}")), title="A title", about="Of both."
    )
    table.add("float", None, None)
    table.add("int8", np.float64(12.345), (3, 4))
    table.add("a|b", Shown(0.5, "{:+.1%}"), "none")
    table.notes.append("* a note")
    return Results(name="some", tables=[table], made=made, about=["About all."], notes=["The end."])


def test_a_page_is_written_with_its_figures(tmp_path: Path) -> None:
    results().write(tmp_path)
    page, text = (tmp_path / "some.md").read_text(), (tmp_path / "some.json").read_text()
    body = [line for line in page.splitlines() if line]
    assert body[1:] == [
        "About all.",
        "#### A title",
        "Of both.",
        "| model | dB | kernels |",
        "|---|---|---|",
        "| float |  |  |",
        "| int8 | 12.3 | 3 of 4 |",
        "| a/b | +50.0% | none |",
        "* a note",
        "The end.",
    ]
    document = json.loads(text)
    assert document["tables"][0]["rows"] == [["float", None, None], ["int8", 12.345, [3, 4]], ["a|b", 0.5, "none"]]
    assert list(complaints(document, page)) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"commit": "abc"}, "the commit is no whole hash"),
        ({"command": "python tools/some.py --peer-python ..."}, "the command is not whole"),
        ({"versions": {"onnx": "1.0"}}, "versions are missing"),
        ({"versions": dict.fromkeys(PACKAGES, UNKNOWN)}, "a run did not record what it runs on"),
        ({"provenance": "somehow"}, "the provenance is neither of the two"),
        ({"processor": ""}, "no processor"),
    ],
)
def test_a_missing_field_is_noticed(changes: dict[str, Any], complaint: str) -> None:
    document = json.loads(results().to_json())
    assert complaint in list(complaints(document | changes, results().markdown()))


def test_another_page_is_noticed() -> None:
    document, page = json.loads(results().to_json()), results().markdown()
    assert list(complaints(document, page.replace("| float |  |  |\n", ""))) == ["other rows than the page's"]
    assert list(complaints(document, page.replace("some.py", "other.py"))) == ["the page does not say how it was made"]


def test_a_row_needs_a_cell_for_each_column() -> None:
    table = Table(columns=columns("model", "dB"))
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        table.add("float")


def test_a_run_records_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOLS / "low_bits.py"), "--bits", "w4a4 w3a3", "--write"])
    made = provenance({"nncf": "3.4.0"})
    assert made.command == "python tools/low_bits.py --bits 'w4a4 w3a3' --write"
    assert made.versions["numpy"] == np.__version__
    assert made.versions["nncf"] == "3.4.0"
    assert made.processor
    assert all(made.to_dict()[name] for name in FIELDS)


PAGE = """Versions onnx 1.2.3, AMD EPYC

#### The model

About it.

| tool | dB | both |
|---|---|---|
| ours | +1.50 | 3 of 4 |
| float | | 1.2 to 3.4 |

* 16 samples, ours: +9 dB.
* 64 samples, ours: +1 dB.

The end.
"""


def test_an_old_page_is_read_as_it_is() -> None:
    found = parsed("some", PAGE, MADE)
    document = json.loads(found.to_json())
    assert document["tables"][0]["rows"] == [["ours", 1.5, [3, 4]], ["float", None, [1.2, 3.4]]]
    assert (found.about, found.notes) == (["Versions onnx 1.2.3, AMD EPYC"], ["The end."])
    expected = PAGE.replace("| float | |", "| float |  |").replace("* 16 samples, ours: +9 dB.\n", "")
    assert found.markdown() == f"{MADE.line()}\n\n{expected}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 1.5 ", 1.5),
        ("-3", -3),
        ("12.9 %", 12.9),
        ("+146 kB", 146),
        ("8.1e-06", 8.1e-06),
        ("7 of 74 linears", [7, 74]),
    ],
)
def test_a_cell_keeps_its_text_beside_its_number(text: str, value: float | list[int]) -> None:
    assert raw(cell(text)) == value
    assert cell(text).form == text.strip()
