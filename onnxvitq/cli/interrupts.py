"""What a command makes of Ctrl-C and SIGTERM."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0  # seconds after an interrupt in which another one does not disturb the clearing up


@contextmanager
def interruptible() -> Iterator[list[float]]:
    """SIGTERM ends a command as Ctrl-C does; a signal that is ignored, as in a background job, stays so.

    Gives the times of the interrupts, by the monotonic clock.
    """
    interrupts: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if not interrupts or time.monotonic() - interrupts[-1] > GRACE:
            interrupts.append(time.monotonic())
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in CAUGHT}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_interrupts() -> None:
    """Until the command ends."""
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
