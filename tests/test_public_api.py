"""The names that a user imports, and what importing them costs."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import onnxvitq
from onnxvitq import api

ROOT = str(Path(onnxvitq.__file__).parent.parent)
HEAVY = ("onnxruntime", "torch", "transformers", "timm", "onnxscript")


def test_every_public_name_resolves() -> None:
    for name in onnxvitq.__all__:
        value = getattr(onnxvitq, name)
        assert callable(value)
        assert value.__doc__
        assert value.__name__ == name


def test_the_list_is_sorted_short_and_complete() -> None:
    assert onnxvitq.__all__ == sorted(set(onnxvitq.__all__))
    assert len(onnxvitq.__all__) <= 15
    assert {"quantize", "inspect", "QuantConfig", "OnnxVitqError"} <= set(onnxvitq.__all__)


def test_names_are_the_packages_own() -> None:
    assert onnxvitq.quantize is api.quantize
    assert onnxvitq.Result is api.Result
    from onnxvitq import QuantConfig

    assert QuantConfig().objective == onnxvitq.QuantConfig().objective


def test_the_version_is_that_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnxvitq.__version__ == metadata.version("onnxvitq")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert onnxvitq.__version__ == "unknown"


def test_star_import_gives_the_list() -> None:
    names: dict[str, object] = {}
    exec("from onnxvitq import *", names)
    assert set(onnxvitq.__all__) <= set(names)


@pytest.mark.parametrize("name", ["quantise", "np", "__path_of_no_return__"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'onnxvitq' has no attribute '{name}'"):
        getattr(onnxvitq, name)


def loaded_by(statement: str) -> list[str]:
    """The heavy packages in memory after a statement in a new process."""
    script = f"import sys, json\n{statement}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    found = json.loads(ran.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


def test_importing_loads_neither_onnxruntime_nor_torch() -> None:
    assert loaded_by("import onnxvitq, onnxvitq.cli.main; assert 'onnxvitq.core.config' in sys.modules") == []


def test_help_and_wrong_options_load_neither() -> None:
    statement = "import os\nfrom onnxvitq.cli.main import main\nsys.stderr = open(os.devnull, 'w')\n"
    statement += "assert main(['model.onnx', '--objective', 'magic']) == 2\n"
    statement += "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    assert loaded_by(statement) == []


def test_quantizing_does_not_need_torch() -> None:
    assert loaded_by("from onnxvitq import quantize") == ["onnxruntime"]
