"""The README says what the repository does: its summary is of the tables, its commands are CI's, its links lead somewhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from documentation import PAGES, ROOT, commands_of

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "tools" / "results"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def summary() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary_table", ROOT / "tools" / "summary_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_summary_is_of_the_tools_results(summary: ModuleType) -> None:
    assert summary.fill(README) == README, "python tools/summary_table.py"


def test_a_changed_figure_is_noticed(summary: ModuleType) -> None:
    changed = re.sub(r"\d+\.\d dB \|", "99.9 dB |", README, count=1)
    assert changed != README
    assert summary.fill(changed) == README


def test_every_table_is_shown_once_and_indexed() -> None:
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "results").glob("*.md")))
    shown = re.findall(r'^--8<-- "tools/results/(\S+)"$', pages, re.MULTILINE)
    index = (ROOT / "docs" / "results" / "index.md").read_text()
    indexed = re.findall(r"`(\w+\.md)`", index)
    tables = sorted(path.name for path in RESULTS.glob("*.md"))
    assert sorted(shown) == tables
    assert sorted(indexed) == tables


def commands_of_tables(page: str) -> dict[str, str]:
    """Table's file -> the commands above it on a page, joined as the table itself says them."""
    found = re.findall(r'```bash\n([^`]*)```\s+--8<-- "tools/results/(\S+)"', page)
    return {name: "; ".join(commands_of(text)) for text, name in found}


def test_commands_above_tables_are_those_that_made_them() -> None:
    shown: dict[str, str] = {}
    for path in sorted((ROOT / "docs" / "results").glob("*.md")):
        shown |= commands_of_tables(path.read_text())
    assert len(shown) == len(list(RESULTS.glob("*.md")))
    for name, commands in shown.items():
        assert (RESULTS / name).read_text().startswith(f"`{commands}`"), name


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for words in (
        "python3 -m venv",
        "pip install",
        "-e '.[test]'",
        "python -m onnxvitq models/fashion_vit/model.onnx --calib models/fashion_vit/calib",
    ):
        assert words in README
        assert words in script.replace("install --quiet", "install")
    assert "tools/check.sh" in script
    assert "pytest" in (ROOT / "tools" / "check.sh").read_text()


def test_named_files_exist() -> None:
    paths = {
        path
        for page in PAGES
        for path in re.findall(r"(?<![\w/.])(?:models|tools|onnxvitq|tests)/[\w/.-]*\w", page.read_text())
    }
    assert len(paths) > 30
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_named_options_are_those_of_a_parser(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxvitq.cli.main import main
    from onnxvitq.cli.reference import main as write_reference

    known = set()
    for command in ("", "inspect", "evaluate", "bench", "export"):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        known |= set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    own = {
        option
        for script in (ROOT / "tools").glob("*.py")
        for option in re.findall(r'"(--[a-z-]+)"', script.read_text())
    }
    with pytest.raises(SystemExit):
        write_reference(["--help"])
    known |= set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    foreign = {
        "--model_dir",
        "--model_filename",
        "--params_filename",
        "--save_file",
        "--opset_version",
    }  # paddle2onnx's
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text()))
        assert sorted(named - known - own - foreign) == [], page


def links_that_lead_nowhere(page: Path, text: str) -> list[str]:
    """Relative links of a page to files or headings that do not exist."""
    broken = []
    for target in LINK.findall(re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(target)
    return broken


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert links_that_lead_nowhere(page, page.read_text()) == []


def test_a_link_to_nothing_is_noticed() -> None:
    text = "[a](docs/nothing.md) [b](docs/faq.md#no-such-heading) [c](docs/faq.md)"
    assert links_that_lead_nowhere(ROOT / "README.md", text) == ["docs/nothing.md", "docs/faq.md#no-such-heading"]


def test_pages_name_no_folder_of_one_machine() -> None:
    for page in PAGES:
        assert re.findall(r"(?<![\w.])/(?:work|home|root)/\S+", page.read_text()) == [], page
