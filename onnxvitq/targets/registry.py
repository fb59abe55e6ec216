"""The targets that come with the package, by the name that ``--target`` gives them: the one place that names them all."""

from collections.abc import Mapping
from typing import get_args

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import TargetName
from onnxvitq.targets.ort_cpu.target import OrtCpu
from onnxvitq.targets.target import Target

TARGETS: Mapping[str, Target] = {processor: OrtCpu(processor=processor) for processor in get_args(TargetName)}
DEFAULT_TARGET = TARGETS[QuantConfig().target]


def target_of(config: QuantConfig) -> Target:
    """The one that the options name."""
    return TARGETS[config.target]
