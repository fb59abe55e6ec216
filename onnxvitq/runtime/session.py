"""onnxruntime sessions. They are made in one place, where every option that changes a result or a timing is set."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxvitq.core.errors import InvalidGraphError, first_line
from onnxvitq.core.tensors import InputSpec

# onnxruntime 1.31 writes telemetry to the temporary folder as soon as it is imported; a quantizer has no business there.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Level = Literal["disabled", "all"]
LEVELS = {"disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
FATAL_ONLY = 4  # log level: errors are raised, and the log would print them once more
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class Session:
    """One model on the CPU provider.

    Args:
        path: the model file; a path, not bytes, so that external data and models over 2 GB work.
        level: graph optimisation, "disabled" (each node runs as written) or "all".
        threads: intra-operator threads; 0 lets onnxruntime take one a core.
        spare: "memory": memory is freed after each operator, which is a little slower. "cores": threads sleep between runs
            instead of spinning, as those of sessions that run in turn would take each other's cores. None: neither.
        optimized: path to which onnxruntime writes the optimised graph, for the audit.
        profile: folder for a profile with the time of every node in every run; ``end_profile`` returns the file.

    Raises:
        InvalidGraphError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        path: Path,
        *,
        level: Level = "all",
        threads: int = 0,
        optimized: Path | None = None,
        profile: Path | None = None,
        spare: Literal["memory", "cores"] | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = FATAL_ONLY
        options.enable_cpu_mem_arena = spare != "memory"
        if spare == "cores":
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile / "profile")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InvalidGraphError(str(path), f"onnxruntime cannot load it: {first_line(error)}") from error

    @property
    def input_specs(self) -> tuple[InputSpec, ...]:
        """Name, type and shape of each input."""
        return tuple(
            InputSpec(
                name=value.name,
                dtype=NUMPY_TYPES.get(value.type, "float32"),
                shape=tuple(size if isinstance(size, int) else None for size in value.shape),
            )
            for value in self._session.get_inputs()
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(value.name for value in self._session.get_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata, key -> value."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def end_profile(self) -> Path:
        """Stop profiling, and return the file with the times of the runs so far."""
        return Path(self._session.end_profiling())

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[Any]:
        """Run the model.

        Args:
            feeds: input name -> array.
            outputs: names of the outputs to compute; None for all.

        Returns:
            The outputs, in the order of ``outputs``. They lie in the session's own memory, all of which is held as long as any
            of them: copy an output to keep it.

        Raises:
            InvalidGraphError: the model fails on this input.
        """
        try:
            return list(self._session.run(None if outputs is None else list(outputs), dict(feeds)))
        except Exception as error:  # as above
            raise InvalidGraphError(
                "onnxruntime", f"the model does not run on this input: {first_line(error)}"
            ) from error
