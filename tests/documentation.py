"""The blocks of the documentation: what is a command, a script, a shown output or a file, and how shown output is compared.

A fence says by its language what happens to it:

* ``bash``: each command is run. ``console``: a command after ``$``, and below it what it prints, which is compared.
* ``python``: run, in one namespace a page, so that a later block may use what an earlier one made.
* ``text``, ``json``, ``toml``, ``yaml``, ``mermaid``: shown. After ``<!-- output -->`` it is what the block above prints, which
  is compared; after ``<!-- file: NAME -->`` it is written to that file for the commands after it.

A line ``--8<-- "FILE"`` in a block stands for the text of that file, as the site shows it.

``<!-- exit: N -->`` before a ``bash`` or ``console`` block says the exit code of its last command.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = frozenset({"bash", "console", "python"})
SHOWN = frozenset({"text", "json", "toml", "yaml", "mermaid"})
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"<!-- (output|file: (?P<file>\S+)|exit: (?P<exit>\d+)) -->\s*\Z")
INCLUDED = re.compile(r'^--8<-- "(docs/examples/\S+)"$', re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
TIMES = re.compile(
    r"second|\bms\b|\bload\b|\btotal\b|fit |calibrate|write |audit \d|compare \d|minutes|optimised against plain"
)
TOLERANCE = 0.15  # of a shown number: other processors round a few codes otherwise
TABLE = str.maketrans("", "", "─│┌┐└┘├┤┬┴┼━┃┏┓┗┛┡┩┳┻╇╈")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        page: its file.
        line: number of its first line.
        language: of its fence.
        text: without the fence's indentation.
        shown_output: whether it is what the block above prints.
        file: name of the file that it is, empty for none.
        code: exit code that its last command has.
    """

    page: Path
    line: int
    language: str
    text: str
    shown_output: bool = False
    file: str = ""
    code: int = 0

    @property
    def where(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text() if text is None else text
    text = INCLUDED.sub(lambda found: (ROOT / found[1]).read_text().rstrip(), text)
    blocks = []
    for fence in FENCE.finditer(text):
        mark = MARK.search(text[: fence.start()].rstrip(" "))
        indent = len(fence["indent"])
        lines = [line[indent:] for line in fence["text"].splitlines()]
        blocks.append(
            Block(
                page=page,
                line=text.count("\n", 0, fence.start()) + 1,
                language=fence["language"],
                text="\n".join(lines) + "\n",
                shown_output=mark is not None and mark[1] == "output",
                file="" if mark is None else mark["file"] or "",
                code=0 if mark is None else int(mark["exit"] or 0),
            )
        )
    return blocks


def commands_of(text: str) -> list[str]:
    """The commands of a ``bash`` block: continued lines joined, comments and empty lines left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [line for line in (shlex.join(_words(line)) if "#" in line else line.strip() for line in joined) if line]


def _words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def console_of(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a ``console`` block."""
    parts = re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)
    if parts[0].strip():
        raise ValueError(f"expected a command after $, got {parts[0].splitlines()[0]!r}")
    return [(command.strip(), output) for command, _, output in (part.partition("\n") for part in parts[1:])]


def missing(shown: str, printed: str) -> list[str]:
    """Lines that are shown and not printed, in this order. Frames of tables and widths of columns do not count; numbers may
    differ by ``TOLERANCE``, those in a line that tells times or rounding by anything; ``...`` stands for any number of lines,
    and within a line for the rest of it.
    """
    lines = [line for line in map(_plain, printed.splitlines()) if line]
    left, place = [], 0
    for line in (line for line in map(_plain, shown.splitlines()) if line and line != "..."):
        at = next((index for index in range(place, len(lines)) if _alike(line, lines[index])), None)
        if at is None:
            left.append(line)
        else:
            place = at + 1
    return left


def _plain(line: str) -> str:
    return " ".join(line.translate(TABLE).split())


def _alike(shown: str, printed: str) -> bool:
    start, rest, _ = shown.partition(" ...")
    if rest:
        shown, printed = start, printed[: len(start)]
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    if TIMES.search(shown):
        return True
    pairs = zip(map(float, NUMBER.findall(shown)), map(float, NUMBER.findall(printed)), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)
