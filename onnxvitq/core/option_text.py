"""Values of options as people type them: 0.5%, 12MB, block*.mlp.fc2=w4a8.

Every function takes the text of one argument and raises ValueError with the reason why it cannot be read.
"""

from collections.abc import Callable, Mapping

COUNT: Mapping[str, int] = {"least": 1, "most": 2**31 - 1}  # bounds of a number of things
MOST_THREADS = 1024


def pattern_and_bits(text: str) -> tuple[str, str]:
    """``block*.mlp.fc2=w4a8`` as a pair; a pattern may hold a "=" of its own."""
    pattern, equals, bits = text.rpartition("=")
    if not equals:
        raise ValueError(f"expected PATTERN=wNaM or PATTERN=float, got {text!r}")
    return pattern, bits


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers between two bounds, both allowed."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(f"expected a whole number, got {text!r}") from error
        if not least <= value <= most:
            raise ValueError(f"expected {least} to {most}, got {value}")
        return value

    return read


def thread_counts(text: str) -> tuple[int, ...]:
    """``1,2``: numbers of threads between commas."""
    read = whole_number(0, MOST_THREADS)
    return tuple(read(part) for part in text.split(","))


def share(text: str) -> float:
    """``0.5%`` or ``0.005``, as a share of one."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"expected a share such as 0.5%, got {text!r}") from error


def megabytes(text: str) -> float:
    """``12MB``, ``500kB``, ``2GB`` or a number of bytes, in MB of a million bytes."""
    units = {"gb": 1e3, "mb": 1.0, "kb": 1e-3, "b": 1e-6}
    number = text.lower().rstrip("bgkm")
    unit = text.lower()[len(number) :]
    try:
        return float(number) * units[unit or "b"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"expected a size such as 12MB, got {text!r}") from error
