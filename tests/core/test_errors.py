import re

import pytest

from onnxvitq.core import errors
from onnxvitq.core.errors import ConfigError, OnnxVitqError

EVERY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, OnnxVitqError)]


def parent(kind: type[OnnxVitqError]) -> str:
    return "" if kind is OnnxVitqError else kind.__bases__[0].__name__


def drawn(text: str) -> dict[str, str]:
    """Class name -> parent's name, from the tree: the further right a name stands, the deeper it is."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r"[\s│├└─]*([A-Z]\w*Error)\b", line)
        if found is None:
            continue
        name, column = found[1], found.start(1)
        above = [(other, upper) for other, upper in above if other < column]
        parents[name] = above[-1][1] if above else ""
        above.append((column, name))
    return parents


def test_the_tree_is_as_drawn() -> None:
    assert errors.__doc__ is not None
    assert drawn(errors.__doc__) == {kind.__name__: parent(kind) for kind in EVERY}


def test_the_drawing_is_read_level_by_level() -> None:
    text = "    AError\n    ├── BError   text\n    │   └── CError\n    └── DError   an error of AError\n"
    assert drawn(text) == {"AError": "", "BError": "AError", "CError": "BError", "DError": "AError"}


def test_every_error_says_what_it_is_for() -> None:
    assert len(EVERY) == len({kind.__doc__ for kind in EVERY}) > 10


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_where_problem_and_hint_make_one_line(kind: type[OnnxVitqError]) -> None:
    error = kind("model.onnx", "expected a file,\n  got a\tfolder", "name the\r\nfile")
    assert str(error) == "model.onnx: expected a file, got a folder (name the file)"
    assert (error.where, error.problem, error.hint) == (
        "model.onnx",
        "expected a file,\n  got a\tfolder",
        "name the\r\nfile",
    )


def test_without_a_hint() -> None:
    assert str(ConfigError("--bits", "expected 7 or 8, got 9")) == "--bits: expected 7 or 8, got 9"
    assert ConfigError("--bits", "wrong").hint == ""


def test_one_base_catches_all_and_nothing_else() -> None:
    with pytest.raises(OnnxVitqError):
        raise ConfigError("a", "b")
    assert not issubclass(OnnxVitqError, ValueError)  # a wrong argument in our own code is not a user's mistake
