"""The report of a quantization."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxvitq.report.model_records import Audit, BitsReport, FoundGraph, OutputComparison, SaturationReport
from onnxvitq.report.records import (
    INLINE,
    OPTIONAL,
    REPORT_VERSION,
    PrecisionReport,
    PromiseReport,
    SensitivityReport,
    SkippedFile,
    StepRecord,
    keyed,
    to_dict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the files, data beside a model included.

    Attributes:
        float_model: of the float model, in MB.
        quantized: of the written model, in MB.
    """

    float_model: float = field(metadata=keyed("float"))
    quantized: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall-clock time by stage, in seconds.

    Attributes:
        load: reading the model and opening the data.
        calibrate: the first sweep over the calibration samples.
        judge: the float model on other data; None where no promise is evaluated on such.
        fit: all steps.
        write: laying out and writing the model.
        audit: opening it as a user would.
        compare: running it against the float model.
        total: all of it.
    """

    load: float
    calibrate: float
    judge: float | None = field(default=None, metadata=OPTIONAL)
    fit: float
    write: float
    audit: float
    compare: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """The calibration data.

    Attributes:
        source: folder, file or kind of the data, in one line.
        samples: number of samples.
        skipped: files that could not be read.
        preprocessing: what is done to images, as a configuration file says it; None where the data are no images.
        described: the same in one line; empty where the data are no images.
        preprocessing_from: where it was found.
    """

    source: str
    samples: int | None
    skipped: tuple[SkippedFile, ...]
    preprocessing: Mapping[str, Any] | None
    described: str
    preprocessing_from: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Versions and processor.

    Attributes:
        packages: version of each package by its name.
        python: version.
        platform: operating system.
        processor: its name.
        threads: of onnxruntime; ``all`` where there is one for each core.
    """

    packages: Mapping[str, str] = field(metadata=INLINE)
    python: str
    platform: str
    processor: str
    threads: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is said of one quantization.

    Attributes:
        report_version: of these keys; raised when one goes or changes its meaning.
        model: path of the float model.
        output: path of the written model.
        target: name of the runtime and the processors that it is written for.
        graph: what was found in the float model.
        audit: which kernels the written model runs on.
        bits: of every quantized layer.
        saturation: what processors without VNNI would make of the model.
        compare: the written model's output against the float model's.
        size_mb: of both files, in MB.
        seconds: wall-clock time by stage.
        steps: what each step of the fit did, in order.
        sensitivity: the output's error by kind of site and block; None where it was not asked for.
        precision: which bits mixed precision chose; None where it was not asked for.
        quality: whether the promise on decisions is kept; None where none was asked for.
        sections: what other steps add, each under its own key.
        task: name of the task that says what outputs mean.
        calibration: the calibration data.
        config: the options that were used, as a configuration file says them.
        environment: versions and processor.
    """

    report_version: int = REPORT_VERSION
    model: str
    output: str
    target: str
    graph: FoundGraph = field(metadata=INLINE)
    audit: Audit = field(metadata=INLINE)
    bits: BitsReport
    saturation: SaturationReport
    compare: OutputComparison
    size_mb: Sizes
    seconds: Seconds
    steps: tuple[StepRecord, ...]
    sensitivity: SensitivityReport | None = field(default=None, metadata=OPTIONAL)
    precision: PrecisionReport | None = field(default=None, metadata=OPTIONAL)
    quality: PromiseReport | None = field(default=None, metadata=OPTIONAL)
    sections: Mapping[str, object] = field(default_factory=dict, metadata=INLINE)
    task: str
    calibration: CalibrationReport
    config: Mapping[str, Any]
    environment: Environment

    def to_dict(self) -> dict[str, Any]:
        """The JSON structure, keys in the order of these fields."""
        return to_dict(self)
