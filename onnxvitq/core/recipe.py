"""What a written model says of itself: enough to make it again. No time and no path: same input, same bytes."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECIPE_KEY = "onnxvitq.recipe"
PLACES = ("cache", "judged_on")  # options that name a place: where something lies says nothing of what is written


def recipe(
    model: Path,
    config: Mapping[str, Any],
    *,
    target: str,
    data_digest: str,
    samples: int | None,
    promise_digest: str | None,
) -> str:
    """JSON text for the metadata under ``RECIPE_KEY``.

    Args:
        model: the float model's file.
        config: options, as a configuration file says them.
        target: name of the runtime and the processors that the model is written for.
        data_digest: SHA-256 of the calibration data in hex; empty where it is not known.
        samples: number of calibration samples.
        promise_digest: SHA-256 of the data that a promise is evaluated on; None where there is no promise.
    """
    try:
        tool = version("onnxvitq")
    except PackageNotFoundError:  # run from a source tree that is not installed
        tool = "unknown"
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries = {
        "onnxvitq": tool,
        "target": target,
        "config": {**config, **dict.fromkeys(PLACES)},
        "model_sha256": digest,
        "data_sha256": data_digest,
        "samples": samples,
    }
    if promise_digest is not None:
        entries["judge_sha256"] = promise_digest
    return json.dumps(entries, sort_keys=True)
