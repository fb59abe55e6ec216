"""The sensitivity report as CSV and as a table."""

import csv
import io

from onnxvitq.report.sensitivity import COLUMNS, sensitivity_csv, sensitivity_table


def part(block: int | None, kind: str, sqnr: float) -> dict[str, object]:
    entry: dict[str, object] = {"block": block, "kind": kind, "bits": 8, "sqnr_db": sqnr}
    return entry | {"agreement": 1.0, "share": 0.25, "tensors": ["a", "b, c"]}


DESCRIBED = {
    "output": "logits",
    "samples": 8,
    "parts": [
        part(None, "head.input", 40.0),
        part(0, "attn.q+k+v.input", 50.0),
        part(1, "attn.q+k+v.input", 30.0),
    ],
}


def test_csv_has_one_line_a_part() -> None:
    rows = list(csv.DictReader(io.StringIO(sensitivity_csv(DESCRIBED))))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["block"], row["kind"], row["sqnr_db"]) for row in rows] == [
        ("", "head.input", "40.0"),
        ("0", "attn.q+k+v.input", "50.0"),
        ("1", "attn.q+k+v.input", "30.0"),
    ]
    assert rows[1]["tensors"] == "a b, c"


def test_table_has_a_row_a_kind_the_worst_first_and_a_column_a_block() -> None:
    table = sensitivity_table(DESCRIBED)
    assert [str(column.header) for column in table.columns] == ["kind", "bits", "outside", "0", "1"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["attn.q+k+v.input", "head.input"]
    assert [column[0] for column in cells[2:]] == ["", "50.0", "30.0"]
    assert [column[1] for column in cells[2:]] == ["40.0", "", ""]
