"""What was learned so far, block by block, so that a run that was interrupted goes on where it was.

A checkpoint belongs to one run: to the plan it started from, to its options, and to its samples. One of another run is not
read, and is written over.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.core.plan import QuantPlan, plan_from_bytes, plan_to_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOutcome:
    """What became of one block.

    Attributes:
        block: its number, in the order of execution.
        before: SQNR in dB of its outputs on held-out samples, in closed form.
        after: with what it learned.
        kept: whether what it learned is better.
        reason: why nothing was learned; empty where it was.
    """

    block: int
    before: float
    after: float
    kept: bool
    reason: str = ""


class Checkpoints:
    """A folder with a plan and an outcome for each block that is done; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def load(self, block: int) -> tuple[QuantPlan, BlockOutcome] | None:
        """The plan after a block and what became of it; None where this run has not been there."""
        if self._folder is None:
            return None
        try:
            header = json.loads(self._header(block).read_text(encoding="utf-8"))
            data = self._plan(block).read_bytes()
        except (OSError, ValueError):
            return None
        if header["run"] != self._fingerprint or header["plan"] != hashlib.sha256(data).hexdigest():
            return None
        return plan_from_bytes(data), BlockOutcome(**header["outcome"])

    def save(self, plan: QuantPlan, outcome: BlockOutcome) -> None:
        """A block is done. The header comes last and names the plan's digest: half a checkpoint is none."""
        if self._folder is None:
            return
        data = plan_to_bytes(plan)
        self._plan(outcome.block).write_bytes(data)
        header = {"run": self._fingerprint, "plan": hashlib.sha256(data).hexdigest(), "outcome": asdict(outcome)}
        self._header(outcome.block).write_text(json.dumps(header), encoding="utf-8")

    def _header(self, block: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block{block}.json"

    def _plan(self, block: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block{block}.npz"


def remove_checkpoints(folder: Path) -> None:
    """Remove what was kept, and the folder if nothing else is in it."""
    if folder.is_dir():
        for file in (*folder.glob("block*.npz"), *folder.glob("block*.json")):
            file.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def fingerprint(plan: QuantPlan, options: Mapping[str, Any], samples: Iterable[Mapping[str, np.ndarray]]) -> str:
    """Of a run: what it starts from, what it is asked for, what it learns from."""
    digest = hashlib.sha256(plan_to_bytes(plan))
    digest.update(json.dumps(dict(options), sort_keys=True, default=str).encode())
    for sample in samples:
        for name in sorted(sample):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(sample[name]).tobytes())
    return digest.hexdigest()
