"""The order of the steps: the only place that names all of them.

First what changes the graph exactly (layers outside the blocks that ruin the output are out of the way by then): folded into
constants before what costs time. Then bits, where they may differ; scales; the forms that the options leave open; biases,
where weights are not solved again; weights; learned blocks; and at last the promise on decisions. Sensitivities are of weights
as they are: those solved again make up for the errors of others.
"""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.fit.exact_changes import ExactChange, ExactChoice
from onnxvitq.fit.step import Step
from onnxvitq.fit.steps.attention_formats import AttentionFormats
from onnxvitq.fit.steps.bias import BiasCorrection
from onnxvitq.fit.steps.bits import ChooseBits
from onnxvitq.fit.steps.block_learning.step import BlockLearning
from onnxvitq.fit.steps.channel_scaling.step import FoldedScalings, OnlineScalings
from onnxvitq.fit.steps.input_formats import InputFormats
from onnxvitq.fit.steps.late_softmax.step import LateSoftmax
from onnxvitq.fit.steps.low_rank.step import LowRankBranches
from onnxvitq.fit.steps.outer_layers import OuterLayers
from onnxvitq.fit.steps.promise import KeepPromise
from onnxvitq.fit.steps.ranges import MinMaxRanges
from onnxvitq.fit.steps.rotation.step import Rotation
from onnxvitq.fit.steps.scale_search import ScaleSearch
from onnxvitq.fit.steps.sensitivity import ReportSensitivity
from onnxvitq.fit.steps.weight_reconstruction.step import WeightReconstructionStep

EXACT: tuple[ExactChoice, ...] = (FoldedScalings(), OnlineScalings(), LateSoftmax())
ORDER: tuple[Step, ...] = (
    MinMaxRanges(),
    OuterLayers(),
    Rotation(),
    ExactChange(EXACT),
    ChooseBits(),
    ScaleSearch(),
    AttentionFormats(),
    InputFormats(),
    BiasCorrection(),
    ReportSensitivity(),
    WeightReconstructionStep(),
    LowRankBranches(),
    BlockLearning(),
    KeepPromise(),
)


def steps_of(config: QuantConfig, order: Sequence[Step] = ORDER) -> tuple[Step, ...]:
    """The steps that the options ask for, in order.

    Exact changes of different tensors are tried one by one; with effort "fast" together, and evaluated once instead of three
    times.
    """
    steps: list[Step] = []
    for step in order:
        if isinstance(step, ExactChange):
            wanted = tuple(choice for choice in step.choices if config.runs(choice.name))
            together = [wanted] if config.effort == "fast" else [(choice,) for choice in wanted]
            steps += [ExactChange(choices) for choices in together if choices]
        elif step.runs(config):
            steps.append(step)
    return tuple(steps)
