"""Values as people type them."""

from collections.abc import Callable

import pytest

from onnxvitq.core.option_text import megabytes, pattern_and_bits, share, thread_counts, whole_number


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (megabytes, "12MB", 12.0),
        (megabytes, "500kB", 0.5),
        (megabytes, "2gb", 2000.0),
        (megabytes, "1500000", 1.5),
        (megabytes, "1500000B", 1.5),
        (share, "0.5%", 0.005),
        (share, "0.005", 0.005),
        (share, "100%", 1.0),
        (pattern_and_bits, "block*.mlp.fc2=w4a8", ("block*.mlp.fc2", "w4a8")),
        (pattern_and_bits, "node=1=float", ("node=1", "float")),
        (thread_counts, "2", (2,)),
        (thread_counts, "1,0,2", (1, 0, 2)),
        (whole_number(1, 3), "1", 1),
        (whole_number(1, 3), "3", 3),
    ],
)
def test_readable(read: Callable[[str], object], text: str, expected: object) -> None:
    value = read(text)
    assert value == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (megabytes, "12 apples", "expected a size such as 12MB, got '12 apples'"),
        (megabytes, "12kk", "expected a size such as 12MB, got '12kk'"),
        (megabytes, "MB", "expected a size such as 12MB, got 'MB'"),
        (share, "half", "expected a share such as 0.5%, got 'half'"),
        (pattern_and_bits, "head", "expected PATTERN=wNaM or PATTERN=float, got 'head'"),
        (thread_counts, "1,", "expected a whole number, got ''"),
        (thread_counts, "1025", "expected 0 to 1024, got 1025"),
        (whole_number(1, 3), "0", "expected 1 to 3, got 0"),
        (whole_number(1, 3), "1.5", "expected a whole number, got '1.5'"),
    ],
)
def test_unreadable(read: Callable[[str], object], text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        read(text)
    assert str(caught.value) == reason
