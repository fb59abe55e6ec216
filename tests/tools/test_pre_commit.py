"""Hooks of pre-commit call what the test extra installs, so that they need no network."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
HOOKS: list[dict[str, Any]] = [hook for repository in SETTINGS["repos"] for hook in repository["hooks"]]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_what_is_here(hook: dict[str, Any]) -> None:
    assert hook["language"] == "system"
    python, *words = hook["entry"].split()
    assert python == "python"
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
    else:
        assert (ROOT / words[0]).is_file()
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).is_file()


def test_hooks_are_those_of_ci() -> None:
    assert {repository["repo"] for repository in SETTINGS["repos"]} == {"local"}
    assert {hook["id"] for hook in HOOKS} == {"ruff-format", "ruff-check", "mypy", "sizes-and-layers", "files"}
    checks = (ROOT / "tools" / "check.sh").read_text()
    for words in ("ruff format", "ruff check", "mypy", "tools/check_files.py"):
        assert words in checks
