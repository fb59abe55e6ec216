"""A value that is given away: whoever takes it holds it alone.

A graph and its statistics are most of the memory that a fit needs, and both are replaced on the way. A caller that still had
them in a variable of its own would keep the old ones alive beside the new.
"""

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Handover(Generic[Value]):
    """Holds a value until it is taken, once."""

    def __init__(self, value: Value) -> None:
        self._values = [value]

    def take(self) -> Value:
        """The value; it is not held here any more.

        Raises:
            IndexError: it was taken before.
        """
        return self._values.pop()
