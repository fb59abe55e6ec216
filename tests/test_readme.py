"""The README says what the repository does: its tables are the files that the tools wrote, its commands are CI's."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_the_tools_results(tables: ModuleType) -> None:
    quoted = [name for _, name, _ in tables.MARKER.findall(README)]
    assert sorted(quoted) == sorted(f"tools/results/{file.name}" for file in (ROOT / "tools/results").iterdir())
    assert tables.fill(README) == README


def test_a_changed_table_is_noticed(tables: ModuleType) -> None:
    assert tables.fill(README.replace("| bundled | minmax |", "| bundled | minmaxed |", 1)) == README


def test_commands_name_files_that_exist() -> None:
    paths = re.findall(r"(?:models|tools|onnxvitq|tests)/[\w/.-]*\w", README)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_option_names_in_the_table_are_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxvitq.cli.main import main

    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][a-z-]+", README.split("| option |")[1].split("## Results")[0]))
    assert named - known == set()


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "-e '.[test]'" in script
    assert "-e '.[test]'" in README
    assert "tools/check.sh" in script
    assert "python -m onnxvitq models/fashion_vit/model.onnx --calib models/fashion_vit/calib" in script
    assert "python -m onnxvitq models/fashion_vit/model.onnx --calib models/fashion_vit/calib" in README
