"""The architecture page names rooms and files that exist, every room, and the rooms' contracts where they are."""

import re

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
