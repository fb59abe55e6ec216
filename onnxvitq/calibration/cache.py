"""A folder of statistics, so that a model is measured only once on the same calibration data.

An entry is named by a digest of everything that its values depend on: the model that was run (its bytes and outputs), the
requests, the samples and their preprocessing, how rows were drawn, the versions of the packages, and the source of the code
that measures (``CODE``). When any of these changes, the name changes, and the sweep runs. Entries are never removed; the folder
may be, at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from onnxvitq.calibration.sweep import Sampling
from onnxvitq.core.errors import OnnxVitqError, OutputError
from onnxvitq.core.files import atomic_file
from onnxvitq.core.plan import UNREADABLE
from onnxvitq.core.statistics import FIELDS, Statistics, StatisticsRequest

# Files and rooms whose source decides what is measured. The model that is run is in the key as bytes, whatever wrote it.
CODE = ("core/statistics.py", "core/tensors.py", "calibration", "data", "runtime/session.py")
PACKAGES = ("numpy", "onnxruntime", "pillow")
ARRAYS = ("channels", "rows", "lefts", "rights")  # fields of Statistics that hold an array a tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCache:
    """A folder of entries for one calibration dataset.

    Attributes:
        folder: where the entries are.
        data: text that differs between any two calibration datasets or preprocessings.
    """

    folder: Path
    data: str

    def stats(
        self, model: Path, requests: Sequence[StatisticsRequest], sampling: Sampling, measure: Callable[[], Statistics]
    ) -> Statistics:
        """The statistics of a sweep: read from an entry, or measured and written to one.

        A damaged entry is ignored with a warning and written anew.

        Args:
            model: the model file that the sweep runs, alone in its folder with the files of its weights.
            requests: what is measured.
            sampling: how samples and rows are drawn.
            measure: runs the sweep.
        """
        key = self._key(model, requests, sampling)
        path = self.folder / f"{key}.npz"
        if path.exists():
            try:
                return read_stats(path, key, requests)
            except UNREADABLE as error:
                logger.warning("calibration cache: %s is damaged or foreign, and not used (%s)", path, error)
        stats = measure()
        try:
            with atomic_file(path) as temporary:
                write_stats(temporary, stats, key)
        except OnnxVitqError as error:  # the statistics are there, only the entry is not
            logger.warning("calibration cache: %s", error)
        return stats

    def _key(self, model: Path, requests: Sequence[StatisticsRequest], sampling: Sampling) -> str:
        positions = None if sampling.positions is None else sampling.positions.tolist()
        asked = [self.data, [asdict(request) for request in requests], sampling.seed, positions]
        digest = hashlib.sha256(json.dumps([_code(), asked]).encode())
        for file in sorted(model.parent.iterdir()):
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()


def open_cache(folder: str, data: Mapping[str, Any]) -> CalibrationCache:
    """A cache in a folder, which is made if it does not exist.

    Args:
        folder: path of the folder.
        data: a description of samples and preprocessing that differs between any two of them; values that JSON can hold.

    Raises:
        OutputError: the folder cannot be made.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(folder, f"expected a folder for the calibration cache: {error.strerror}") from error
    return CalibrationCache(folder=path, data=json.dumps(data, sort_keys=True))


@cache
def _code() -> str:
    """Versions of packages, and a digest of the source that computes inputs and statistics."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in CODE:
        for file in sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{[(name, version(name)) for name in PACKAGES]} {digest.hexdigest()}"


def write_stats(path: Path, stats: Statistics, key: str = "") -> None:
    """Write statistics as an .npz file: a JSON header, and the arrays, numbered in the order of the header.

    Args:
        path: the file.
        stats: what to write.
        key: name of the entry, which ``read_stats`` compares.

    Raises:
        OSError: the file cannot be written.
    """
    wholes = {name: len(values) for name, values in stats.wholes.items()}
    header: dict[str, Any] = {"key": key, "count": stats.count, "ranges": dict(stats.ranges), "wholes": wholes}
    header |= {field: list(getattr(stats, field)) for field in ARRAYS}
    arrays = [array for field in ARRAYS for array in getattr(stats, field).values()]
    arrays += [value for values in stats.wholes.values() for value in values]
    named = {f"array{index}": array for index, array in enumerate(arrays)}
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **named)


def read_stats(path: Path, key: str = "", requests: Sequence[StatisticsRequest] = ()) -> Statistics:
    """Read what ``write_stats`` wrote.

    Args:
        path: the file.
        key: name that the entry must have.
        requests: statistics that must be in it.

    Raises:
        Exception: one of ``core.plan.UNREADABLE`` where the file is damaged, has another key or lacks a request.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:  # a zip's sums are checked as it is read
        header = json.loads(loaded["header"].tobytes())
        if header["key"] != key:
            raise ValueError("an entry of another name")
        arrays = (loaded[f"array{index}"] for index in range(len(loaded.files) - 1))
        values: dict[str, Any] = {field: {name: next(arrays) for name in header[field]} for field in ARRAYS}
        values["wholes"] = {name: tuple(next(arrays) for _ in range(n)) for name, n in header["wholes"].items()}
    values["ranges"] = {name: (float(low), float(high)) for name, (low, high) in header["ranges"].items()}
    missing = [request.tensor for request in requests if request.tensor not in values[FIELDS[request.kind]]]
    if missing:
        raise ValueError(f"nothing is kept of {missing[0]}")
    return Statistics(count=int(header["count"]), **values)
