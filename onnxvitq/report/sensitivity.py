"""The sensitivity report: error of the model's output with one kind of site of one block quantized, as JSON, CSV and table."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLUMNS = ("block", "kind", "bits", "sqnr_db", "agreement", "share", "tensors")


def sensitivity_csv(described: Mapping[str, Any]) -> str:
    """One line a part; an empty block is outside all blocks, several tensors are joined by spaces."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for part in described["parts"]:
        writer.writerow(" ".join(part[name]) if isinstance(part[name], list) else part[name] for name in COLUMNS)
    return file.getvalue()


def sensitivity_table(described: Mapping[str, Any]) -> Table:
    """SQNR in dB by kind (rows) and block (columns); the worst of each kind's blocks is what the rows are sorted by."""
    title = f"Output SQNR in dB with one kind of site quantized ({described['output']}, {described['samples']} samples)"
    table = Table(title=title, title_justify="left")
    parts = described["parts"]
    blocks = sorted({part["block"] for part in parts}, key=lambda block: (block is not None, block or 0))
    table.add_column("kind", overflow="fold")
    table.add_column("bits", overflow="fold")
    for block in blocks:
        table.add_column("outside" if block is None else str(block), justify="right", overflow="fold")
    kinds: dict[str, dict[int | None, Mapping[str, Any]]] = {}
    for part in parts:
        kinds.setdefault(part["kind"], {})[part["block"]] = part
    for kind, found in sorted(kinds.items(), key=lambda item: min(part["sqnr_db"] for part in item[1].values())):
        cells = [f"{found[block]['sqnr_db']:.1f}" if block in found else "" for block in blocks]
        bits = sorted({part["bits"] for part in found.values()})
        table.add_row(kind, ", ".join(map(str, bits)), *cells)
    return table
