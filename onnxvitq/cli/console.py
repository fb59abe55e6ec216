"""What commands show besides their results: tables, progress, warnings."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from onnxvitq.cli.interrupts import ignore_interrupts
from onnxvitq.report.records import SkippedFile

LISTED = 5  # unreadable images that are named


def console_of_results() -> Console:
    """Standard output; node names and paths are printed as they are."""
    return Console(markup=False, emoji=False, highlight=False)


def new_table(title: str, *columns: str) -> Table:
    """A table whose cells are folded where the terminal is narrow, never cut."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


class ProgressBar:
    """A progress bar with the time left on standard error, as a callback (stage, done, total).

    It appears with the first stage, and only in a terminal: a log keeps the lines that say something.
    """

    def __init__(self, *, hidden: bool) -> None:
        text, count, spent, left = (
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        disable = hidden or not console.is_terminal
        self._bar = Progress(text, BarColumn(), count, spent, left, console=console, disable=disable, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show how far a stage is; after "finish" nothing interrupts any more."""
        if stage == "finish":  # from here the command either has its whole effect or had none
            ignore_interrupts()
            return
        if stage not in self._tasks:
            self._bar.start()
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done, total=total)


def warn_skipped(skipped: Sequence[SkippedFile]) -> None:
    """Name the first few files that could not be read."""
    for entry in skipped[:LISTED]:
        sys.stderr.write(f"onnxvitq: skipped {entry.file}: {entry.reason}\n")
    if len(skipped) > LISTED:
        sys.stderr.write(f"onnxvitq: skipped {len(skipped) - LISTED} more, named in the JSON report\n")
