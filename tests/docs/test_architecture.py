"""The architecture page names rooms and files that exist, every room, and the rooms' contracts where they are."""

import re
from pathlib import Path

from documentation import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "onnxvitq"


def absent(page: str) -> list[str]:
    """Paths in backquotes that are neither below the package nor below the root; names with a placeholder are new files."""
    paths = set(re.findall(r"`([\w/]+/[\w.]*|[\w/]+\.py)`", page))
    return sorted(path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists())


def test_named_files_exist() -> None:
    assert absent(PAGE) == []


def test_a_file_that_is_gone_is_noticed() -> None:
    assert absent("`core/config.py` and `core/nothing.py` and `fit/steps/<name>.py`") == ["core/nothing.py"]


def test_every_room_is_described() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    described = {name.split("/")[0] for name in re.findall(r"^\| `([\w/]+)/` \|", PAGE, re.MULTILINE)}
    assert rooms - described == set()


def test_contracts_are_where_the_page_says() -> None:
    for path, name in (
        ("fit/step.py", "class Step("),
        ("fit/order.py", "ORDER"),
        ("graph/canonical.py", "PASSES"),
        ("core/formats.py", "class NumberFormat"),
        ("evaluation/tasks/task.py", "class Task("),
        ("report/renderers/registry.py", "RENDERERS"),
        ("targets/target.py", "class Target("),
        ("targets/registry.py", "TARGETS"),
    ):
        assert f"`{path}`" in PAGE
        assert name in (PACKAGE / path).read_text(), path


CITED = re.compile(r'docs/(\w+)\.md,\s+"([^"]+)"(?:\s+and\s+"([^"]+)")?')


def cited_in(source: str) -> list[tuple[str, str]]:
    """(page, heading) of every section of these pages that a source cites."""
    return [(page, title) for page, *titles in CITED.findall(source) for title in titles if title]


def unknown_sections(cited: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that no page has."""
    return [(page, title) for page, title in cited if not _has(ROOT / "docs" / f"{page}.md", " ".join(title.split()))]


def _has(page: Path, title: str) -> bool:
    return page.exists() and re.search(rf"^#+ {re.escape(title)}$", page.read_text(), re.MULTILINE) is not None


def test_sections_that_the_code_cites_exist() -> None:
    sources = [path for room in ("onnxvitq", "tests", "tools") for path in (ROOT / room).rglob("*.py")]
    cited = [section for path in sources for section in cited_in(path.read_text()) if path != Path(__file__)]
    assert len(cited) > 10
    assert unknown_sections(cited) == []


def test_a_section_that_is_not_there_is_noticed() -> None:
    source = '(docs/methods.md, "Ridge regression" and\n    "Black magic")'
    assert unknown_sections(cited_in(source)) == [("methods", "Black magic")]
