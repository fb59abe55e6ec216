"""Time by operator, from onnxruntime's own profile of a session."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RUN, KERNEL = "model_run", "_kernel_time"  # event of a whole run, and suffix of the event of a node, in its profiles


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """The time of all nodes of one operator in one run.

    Attributes:
        ms: milliseconds, the median over the runs.
        nodes: number of nodes.
    """

    ms: float
    nodes: int


def operator_times(profile: Path, warm_up: int) -> dict[str, OperatorTime]:
    """Operator -> its time in a run, longest first.

    Args:
        profile: file that a session with ``profile`` wrote.
        warm_up: number of runs at the start that do not count; fewer than all runs.
    """
    events = json.loads(profile.read_text(encoding="utf-8"))
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == RUN)[warm_up:]
    runs = [_by_operator(events, *span) for span in spans]
    names = {name for run in runs for name in run}
    times = {
        name: OperatorTime(
            ms=round(float(np.median([sum(run.get(name, ())) for run in runs])) / 1e3, 4),
            nodes=max(len(run.get(name, ())) for run in runs),
        )
        for name in names
    }
    return dict(sorted(times.items(), key=lambda item: (-item[1].ms, item[0])))


def _by_operator(events: Sequence[Mapping[str, Any]], start: int, end: int) -> dict[str, list[int]]:
    """Operator -> microseconds of each of its nodes in the run between ``start`` and ``end``."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(KERNEL) and start <= event["ts"] <= end:
            found.setdefault(event["args"]["op_name"], []).append(event["dur"])
    return found
