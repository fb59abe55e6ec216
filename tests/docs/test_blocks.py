"""Every command and code block of README, CONTRIBUTING and docs/ is run, compared, or named here with the reason why not."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from documentation import PAGES, ROOT, RUN, SHOWN, Block, blocks_of, commands_of, console_of, missing

from onnxvitq.cli.main import main

# Commands that are not run, by how they begin, and why; each is checked for the files and the options that it names.
NOT_RUN = {
    "python3 -m venv": "makes a virtual environment: .ci/run does, with the same words",
    ".venv/bin/pip install": "installs from a registry: .ci/run does, with the same words",
    ".venv/bin/python -m pytest": "the test suite itself: .ci/run runs it",
    "pip install": "installs from a registry",
    "python -m pytest": "the test suite itself",
    "tools/check.sh": "the test suite itself, format, lint and types: .ci/run runs it",
    "tools/docs.sh": "builds this documentation: tools/check.sh runs it",
    "python -m onnxvitq.cli.reference": "writes into docs/: a test of the command line compares what it would write",
    "python tools/": "measures for minutes to hours, some with tools of their own interpreter; the tables are kept",
    "paddle2onnx": "paddle is no dependency of this project",
}
OURS = ["python", "-m", "onnxvitq"]


LONG = {
    "README.md",
    "docs/getting-started.md",
    "docs/choosing-options.md",
}  # pages that quantize a dozen times, or export


def name_of(page: Path) -> str:
    """As in the list above."""
    return str(page.relative_to(ROOT))


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    """Whether a page takes long."""
    return [pytest.mark.slow] if name_of(page) in LONG else []


def not_run(command: str) -> str:
    """Why a command is not run; empty where it is."""
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), "")


def run(command: str) -> tuple[int, str]:
    """Exit code and output of one command; the product's own in this process, which spares loading it."""
    words = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        if words[: len(OURS)] == OURS and not set(words) & {"|", ">", ";"}:
            try:
                return main(words[len(OURS) :]), out.getvalue()
            except SystemExit as end:  # --help
                return int(end.code or 0), out.getvalue()
        if words[0] == "python" and len(words) == 2:
            runpy.run_path(words[1], run_name="__main__")
            return 0, out.getvalue()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def executed(command: str, code: int, done: dict[str, tuple[int, str]]) -> str:
    """What a command printed, its exit code checked; empty where it is not run. ``done``: what its page has run before."""
    output = ""
    for part in command.split(" && "):
        if not_run(part):
            check_words(part)
            continue
        words = part.removeprefix(".venv/bin/")
        done[words] = got, output = done.get(words) or run(words)
        assert got == code, f"{part}: exit {got}, expected {code}: {output[-500:]}"
    return output


def check_words(command: str) -> None:
    """The files and options that a command names exist, where they are this repository's."""
    words = shlex.split(command)
    script = next((ROOT / word for word in words if re.match(r"(tools|models)/\S+\.(py|sh)$", word)), None)
    if script is None:
        return
    source = source_of(script)
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source and word != "--help"]
    assert unknown == [], f"{command}: {script.name} knows no {unknown}"


@dataclass(slots=True, kw_only=True)
class PageRun:
    """What the blocks of one page leave for those after them.

    Attributes:
        names: namespace of its Python blocks.
        above: what the block above printed.
        done: (exit code, output) of its commands.
    """

    names: dict[str, object] = field(default_factory=lambda: {"__name__": "documentation"})
    above: str = ""
    done: dict[str, tuple[int, str]] = field(default_factory=dict)


def source_of(script: Path) -> str:
    """Of a script and of the modules beside it that it imports."""
    text = script.read_text()
    beside = (script.with_name(f"{name}.py") for name in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    return text + "".join(source_of(path) for path in beside if path.exists())


def run_block(block: Block, page: PageRun) -> str:
    """Run or compare one block; what it printed."""
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    elif block.shown_output:
        assert missing(block.text, page.above) == [], f"{block.where}: printed:\n{page.above}"
    elif block.language == "bash":
        commands = commands_of(block.text)
        codes = [0] * (len(commands) - 1) + [block.code]
        return "".join(executed(command, code, page.done) for command, code in zip(commands, codes, strict=True))
    elif block.language == "console":
        for command, shown in console_of(block.text):
            printed = executed(command, block.code, page.done)
            assert missing(shown, printed) == [], f"{block.where}: {command}: printed:\n{printed}"
    elif block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.text, block.where, "exec"), page.names)  # it is our own documentation
        return out.getvalue()
    return ""


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page), marks=marks_of(page)) for page in PAGES])
def test_blocks_of_a_page_run(page: Path, sandbox: Path) -> None:
    blocks = blocks_of(page)
    assert [block.where for block in blocks if block.language not in RUN | SHOWN] == []
    run_so_far = PageRun()
    for block in blocks:
        run_so_far.above = run_block(block, run_so_far)
    assert sandbox.exists()


def test_a_block_is_skipped_for_a_reason_that_is_listed_and_every_reason_is_of_use() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    parts = [
        part
        for block in blocks
        if block.language == "bash"
        for command in commands_of(block.text)
        for part in command.split(" && ")
    ]
    used = {start for start in NOT_RUN for part in parts if part.startswith(start)}
    assert set(NOT_RUN) - used == set()
    assert sum(not not_run(part) for part in parts) > 20


def test_shown_output_that_differs_is_noticed() -> None:
    printed = "│ against float │ SQNR 42.84 dB │\nsize 1.84 MB\nseconds 3.0"
    assert missing("against float  SQNR 41.9 dB\n...\nseconds 9.0", printed) == []
    assert missing("against float SQNR 30.0 dB", printed) == ["against float SQNR 30.0 dB"]
    assert missing("against noise SQNR 42.84 dB", printed) == ["against noise SQNR 42.84 dB"]
    assert missing("size 1.84 MB\nagainst float SQNR 42.84 dB", printed) == ["against float SQNR 42.84 dB"]


def test_a_command_that_fails_and_a_script_that_raises_are_noticed(sandbox: Path) -> None:
    text = "```bash\npython -m onnxvitq inspect nothing.onnx\n```\n\n```python\nassert False\n```\n"
    command, script = blocks_of(ROOT / "README.md", text)
    with pytest.raises(AssertionError, match="exit 2, expected 0"):
        run_block(command, PageRun())
    with pytest.raises(AssertionError):
        run_block(script, PageRun())


def test_an_option_that_a_tool_does_not_know_is_noticed() -> None:
    with pytest.raises(AssertionError, match="knows no"):
        check_words("python tools/vit_s.py --wrong")


def test_fences_are_read_with_their_marks() -> None:
    text = "<!-- file: a.toml -->\n```toml\nx = 1\n```\n\n<!-- exit: 3 -->\n```bash\nfalse\n```\n"
    text += "<!-- output -->\n```text\n1\n```\n"
    file, command, output = blocks_of(ROOT / "README.md", text)
    assert (file.file, command.code, output.shown_output) == ("a.toml", 3, True)
    assert [block.line for block in (file, command, output)] == [2, 7, 11]
