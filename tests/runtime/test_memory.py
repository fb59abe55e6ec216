"""Freed memory goes back to the system."""

import gc
import sys
import weakref

import pytest

from onnxvitq.runtime import memory
from onnxvitq.runtime.memory import give_back


class Node:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_cycles_are_freed_where_asked_for() -> None:
    gc.disable()
    try:
        seen = weakref.ref(Node())
        give_back(cycles=False)
        assert seen() is not None
        give_back()
        assert seen() is None
    finally:
        gc.enable()


def test_the_c_library_is_asked_on_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there is nothing to call, and nothing is."""
    memory._c_library.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._c_library() is None
    give_back()
    memory._c_library.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory._c_library() is not None
    memory._c_library.cache_clear()
