"""The reference pages are what the descriptions of the options say."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from config_cases import Extended

from onnxvitq.cli import reference
from onnxvitq.cli.arguments import Parser
from onnxvitq.core.config import QuantConfig

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGE = reference.pages()["options.md"]


def test_the_committed_pages_are_up_to_date() -> None:
    assert reference.out_of_date(FOLDER) == [], f"run {reference.COMMAND}"


def test_the_readmes_table_is_up_to_date_and_a_change_is_noticed(tmp_path: Path) -> None:
    readme = FOLDER.parents[1] / "README.md"
    assert "README.md" not in reference.out_of_date(FOLDER, readme), f"run {reference.COMMAND}"
    changed = tmp_path / "README.md"
    changed.write_text(readme.read_text().replace("How much time", "How much money", 1))
    assert "README.md" in reference.out_of_date(FOLDER, changed)
    with pytest.raises(ValueError, match="expected one table of options between markers, got 0"):
        reference.with_brief_table("no markers")


def test_a_page_that_is_out_of_date_or_missing_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "reference"
    assert reference.main([str(folder)]) == 0
    assert reference.main([str(folder), "--check"]) == 0
    page = folder / "options.md"
    page.write_text(page.read_text().replace("pearson", "person", 1))
    (folder / "commands.md").unlink()
    assert reference.main([str(folder), "--check"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == [str(page), str(folder / "commands.md")]
    assert not (folder / "commands.md").exists()


def test_every_flag_of_the_page_is_one_of_the_parsers_and_the_other_way_round() -> None:
    for parser, section in zip(reference.parsers(), re.split(r"\n## ", PAGE)[1:], strict=True):
        assert section.startswith(f"{parser.prog}\n")
        first_cells = "\n".join(row.split("|")[1] for row in section.splitlines() if row.startswith("| "))
        named = set(re.findall(r"`(--?[a-z][a-z0-9-]*)`", first_cells))
        assert named == {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}


def test_every_key_of_the_configuration_is_on_the_page_once() -> None:
    keys = re.findall(r"^\| [^|]*\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(keys) == sorted(item.name for item in fields(QuantConfig))


def test_every_row_has_all_cells() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("|")]
    assert len(rows) > 60
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}


def test_an_option_from_outside_gets_a_row() -> None:
    section = reference.options_of_command(Parser("more", "The configuration and more.", Extended))
    row = "| `--noise` | `noise` | integer, 1 to 5 | what the data has | Noise that is added. | 0.1 |\n"
    assert f"### Extra\n\n{reference.HEAD}{row}" in section


def test_each_command_is_shown_as_it_is_printed() -> None:
    page = reference.pages()["commands.md"]
    for parser in reference.parsers():
        assert f"## {parser.prog}\n\n```text\nusage: {parser.prog} " in page
    assert max(len(line) for line in page.splitlines()[6:]) <= reference.HELP_WIDTH
