"""The reference pages, written from what is described in the code: ``python -m onnxvitq.cli.reference docs/reference``.

options.md is a table of all options, commands.md every command's help as it is printed, config.schema.json the JSON schema of
a configuration file, report.md the keys of the report. With ``--readme FILE`` the table between two markers of that file has
the options that are described briefly. With ``--check`` nothing is written, and a file that is out of date ends in exit code 1.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from onnxvitq.cli import bench, evaluate, export, inspect, quantize
from onnxvitq.cli.arguments import Parser, metavar_of, read
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.options import NamedOption, Options, option, options_of, required
from onnxvitq.core.schema import NAMES, json_schema
from onnxvitq.report.reference import report_page

COMMAND = "python -m onnxvitq.cli.reference docs/reference --readme README.md"
BRIEF_TABLE = re.compile(r"(<!-- options -->\n)(.*?)(<!-- end of options -->)", re.DOTALL)
HELP_WIDTH = 100
WORDS = {**NAMES, str: "text", Path: "file"}
HEAD = "| option | key | value | default | meaning | since |\n|---|---|---|---|---|---|\n"
OPTIONS_INTRODUCTION = """# Options

Every option of every command, by group. **Option** is what the command line takes, with the spellings of other tools beside the
usual one; underscores instead of hyphens will do, too. **Key** is the name in a configuration file (`--config`, .json or .toml)
and of the argument of `QuantConfig` in Python; an option without a key is the command line's alone. The command line wins over
the file. A `null` in a JSON file stands for the default where the value may be left open. Editors check a JSON file against
[config.schema.json](config.schema.json); [commands.md](commands.md) has the same as it is printed, and
[Choosing options](../choosing-options.md) says which to take for what.
"""
COMMANDS_INTRODUCTION = """# Commands

What each command prints with `--help`. [options.md](options.md) has the options as a table.
"""


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(Options):
    """Where the pages go."""

    folder: Path = required(help="Folder of the pages.", positional=True)
    readme: Path | None = option(None, help="File with a table of the options most used.", none="no such file")
    check: bool = option(False, help="Write nothing; exit with 1 when a page is out of date.")


def parsers() -> tuple[Parser, ...]:
    """Those of all commands."""
    return tuple(command.parser() for command in (quantize, inspect, export, evaluate, bench))


def pages() -> dict[str, str]:
    """Name of each file -> its content."""
    note = f"<!-- Written by {COMMAND}; do not edit. -->\n\n"
    schema = json_schema(QuantConfig, "Configuration of onnxvitq")
    return {
        "options.md": note + OPTIONS_INTRODUCTION + "".join(map(options_of_command, parsers())),
        "commands.md": note + COMMANDS_INTRODUCTION + "".join(map(_help_of_command, parsers())),
        "report.md": note + report_page(),
        "config.schema.json": json.dumps(schema, indent=2) + "\n",
    }


def options_of_command(parser: Parser) -> str:
    """A section with a table for each group of a command's options."""
    entries = [(named, record.in_files) for record in parser.records for named in options_of(record)]
    titles = list(dict.fromkeys(("", *(named.group for named, _ in entries))))
    entries.sort(key=lambda entry: titles.index(entry[0].group))
    text = f"\n## {parser.prog}\n\n{parser.description}\n"
    for title, group in groupby(entries, key=lambda entry: entry[0].group):
        heading = f"\n### {title[:1].upper()}{title[1:]}\n\n" if title else "\n"
        rows = chain.from_iterable(_rows(named, in_files=in_files) for named, in_files in group)
        text += heading + HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return text


def brief_table() -> str:
    """The options of the main command that are described briefly, in the order in which they are defined."""
    brief = [named for named in options_of(QuantConfig) if named.option.brief]
    rows = (f"| `{named.flags[0]}` | {_value(named)} | {named.option.brief} |\n" for named in brief)
    return "| Option | Values | What it decides |\n|---|---|---|\n" + "".join(rows)


def with_brief_table(text: str) -> str:
    """A text with the table between its markers.

    Raises:
        ValueError: there are no markers, or several.
    """
    found = BRIEF_TABLE.findall(text)
    if len(found) != 1:
        raise ValueError(f"expected one table of options between markers, got {len(found)}")
    return BRIEF_TABLE.sub(lambda match: match[1] + brief_table() + match[3], text)


def _rows(named: NamedOption, *, in_files: bool) -> Iterator[tuple[str, ...]]:
    key = f"`{named.name}`" if in_files else ""
    default = "must be given" if named.required else "off" if named.default is False else named.default_text()
    since = named.option.since
    yield _flags(named), key, _value(named), _cell(default), _cell(named.option.help), since
    for flag, constant in named.option.shortcuts.items():
        yield f"`{flag}`", "", "", "", f"The same as `{named.flags[0]} {constant}`.", since


def _flags(named: NamedOption) -> str:
    if named.option.positional:
        return f"`{metavar_of(named).upper()}`"
    switched_off = tuple(f"--no-{flag[2:]}" for flag in named.flags if named.default is True)
    return ", ".join(f"`{flag}`" for flag in named.flags + switched_off)


def _value(named: NamedOption) -> str:
    """What values are allowed, in a few words."""
    kind, item, described = named.type.kind, named.type.item, named.option
    if named.type.choices:
        values = ", ".join(f"`{choice}`" for choice in named.type.choices)
        return f"some of {values}" if kind is tuple else values
    word = f"`{described.metavar}`" if described.metavar and item in (str, Path) else WORDS[item]
    if described.least is not None and described.most is not None:
        word += f", {described.least:.15g} to {described.most:.15g}"
    return _cell(word + f", {described.unit}" * bool(described.unit) + ", one or more" * (kind is tuple))


def _cell(text: str) -> str:
    return re.sub(r"([|<*])", r"\\\1", text)


def _help_of_command(parser: Parser) -> str:
    return f"\n## {parser.prog}\n\n```text\n{parser.help_text(HELP_WIDTH)}```\n"


def files(folder: Path, readme: Path | None = None) -> dict[Path, str]:
    """Each file -> what is in it when it is up to date."""
    found = {folder / name: text for name, text in pages().items()}
    if readme is not None:
        found[readme] = with_brief_table(readme.read_text(encoding="utf-8"))
    return found


def out_of_date(folder: Path, readme: Path | None = None) -> list[str]:
    """Names of the files that are missing or not what they would be now."""
    return [
        path.name
        for path, text in files(folder, readme).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages; the exit code."""
    parser = Parser("python -m onnxvitq.cli.reference", "Write the reference pages.", ReferenceOptions)
    args = read(parser.parse_args(arguments), ReferenceOptions)
    if args.check:
        stale = out_of_date(args.folder, args.readme)
        for name in stale:
            sys.stderr.write(f"{args.folder / name}: out of date; run {COMMAND}\n")
        return int(bool(stale))
    args.folder.mkdir(parents=True, exist_ok=True)
    for path, text in files(args.folder, args.readme).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
