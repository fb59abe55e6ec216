"""Put the tables of tools/results/ into the README, between the markers that name their files.

python tools/readme_tables.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"(<!-- (tools/results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(readme: str) -> str:
    """The README's text with each table as its file has it now."""
    return MARKER.sub(lambda found: f"{found[1]}\n{(ROOT / found[2]).read_text()}\n{found[3]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(fill(path.read_text()))
