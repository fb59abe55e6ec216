"""The README's summary table, made of the tables in tools/results/ and put between the README's markers.

python tools/summary_table.py
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"
MARKER = re.compile(r"(<!-- summary -->\n).*?(<!-- end of summary -->)", re.DOTALL)
# Title of the row, the tool in bench_accuracy.md, the same layout in peers_speed.md and in file_sizes.md.
ROWS = (
    ("float", "float", "float", "float"),
    ("onnxruntime `quantize_static`, defaults", *["quantize_static, defaults"] * 3),
    (
        "`quantize_static`, best recipe",
        "quantize_static, best recipe, min-max, only inputs of products",
        "quantize_static, best recipe, min-max",
        "quantize_static, best recipe, min-max, only inputs of products",
    ),
    ("`quantize_dynamic`, per channel", *["quantize_dynamic, per channel"] * 3),
    ("NNCF, transformer", *["NNCF, transformer"] * 3),
    ("Quark, smoothing, bias correction", "Quark, smoothing, bias correction", "", "Quark, smoothing, bias correction"),
    ("AIMET, tf_enhanced", "AIMET, tf_enhanced", "", "AIMET, tf_enhanced"),
    ("**onnxvitq**", "onnxvitq", *["onnxvitq --objective minmax"] * 2),
    ("**onnxvitq** `--preset accuracy`", *["onnxvitq --preset accuracy"] * 3),
)
SAMPLES = {"64", ""}  # equal for all tools that calibrate
HEADINGS = ("The bundled model", "Its twin", "A text recogniser", "A sentence encoder")
MADE_BY = (
    ("accuracy; speed on the encoder", "bench_accuracy.md"),
    ("speed on ViT-S", "peers_speed.md"),
    ("file", "file_sizes.md"),
)
HEAD = [
    "| W8A8 | bundled ViT | outlier twin | recogniser | encoder | speed, encoder | speed, ViT-S | file, ViT-S |",
    "|---|---|---|---|---|---|---|---|",
]


def table_rows(text: str) -> list[dict[str, str]]:
    """Every row of the Markdown tables in a text, by its column's first title."""
    rows: list[dict[str, str]] = []
    names: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            names = []
        elif not names:
            names = cells
        elif set(cells) != {"---"}:
            rows.append(
                dict(reversed(list(zip(names, cells, strict=True))))
            )  # "worst" is there twice: the first counts
    return rows


def accuracy(tool: str) -> list[str]:
    """SQNR on the four models, and speed on the last."""
    sections = re.split(r"^#### ", (RESULTS / "bench_accuracy.md").read_text(), flags=re.MULTILINE)
    cells, last = [], {}
    for heading in HEADINGS:
        section = next(section for section in sections if section.startswith(heading))
        found = [row for row in table_rows(section) if row["tool"] == tool and row["samples"] in SAMPLES]
        last = found[0]
        cells.append(f"{float(last['SQNR dB']):.1f} dB" if last["SQNR dB"] else "")
    return [*cells, f"{last['times float']} x"]


def speed(tool: str) -> str:
    """Times float on ViT-S, one thread, one image; empty where it was not measured."""
    wanted = {"model": "ViT-S", "exporter": "dynamo", "threads": "1", "batch": "1", "quantizer": tool}
    rows = table_rows((RESULTS / "peers_speed.md").read_text())
    return next((f"{row['times float']} x" for row in rows if wanted.items() <= row.items()), "")


def size(tool: str) -> str:
    """File size of float's on ViT-S; empty where it was not measured."""
    rows = table_rows((RESULTS / "file_sizes.md").read_text())
    return next((row["of float"] for row in rows if row["tool"] == tool), "")


def provenance(name: str) -> str:
    """How a table was made: the line above it, in one cell."""
    return (RESULTS / name).read_text().splitlines()[0].replace("|", "/")


def summary() -> str:
    """The table, and how its columns were made."""
    lines = [f"| {title} | {' | '.join([*accuracy(a), speed(b), size(c)])} |" for title, a, b, c in ROWS]
    made = [f"| {columns} | {provenance(name)} |" for columns, name in MADE_BY]
    return "\n".join([*HEAD, *lines, "", "| Columns | Made by |", "|---|---|", *made])


def fill(readme: str) -> str:
    """The README's text with the table as the results have it now."""
    return MARKER.sub(lambda found: f"{found[1]}{summary()}\n{found[2]}", readme)


def main() -> None:
    """Write the README anew."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    path = ROOT / "README.md"
    path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
