"""What a runtime that a model is quantized for decides: formats, how a plan is written, and what counts as an integer kernel.

Nothing outside this folder knows a runtime: it is given a ``Target``. A new one is one object with these members, handed to
``quantize(..., target=...)``, or a folder here and a line in ``registry``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import onnx_graphsurgeon as gs

from onnxvitq.core.formats import TensorFormat
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.numerics.saturation import Saturation
from onnxvitq.report.model_records import Audit


class Target(Protocol):
    """A runtime, and the processors it is to be right on."""

    @property
    def name(self) -> str:
        """As in the report."""
        ...

    def weight_format(self, bits: int) -> TensorFormat:
        """Of a linear's weight (I, O) that is asked to have that many bits."""
        ...

    def activation_format(self, bits: int) -> TensorFormat:
        """Of activations that are asked to have that many bits."""
        ...

    def write(self, graph: gs.Graph, layers: Layers, plan: QuantPlan, *, packed: bool = False) -> gs.Graph:
        """A new graph with a fitted plan written into it; ``graph`` (canonical, float) is left as it was.

        Args:
            graph: canonical.
            layers: what was found in it.
            plan: with parameters.
            packed: for the file that users get: weights of few bits may be stored in few bits.

        Raises:
            PlanError: the plan names a tensor or a node that the graph does not have.
        """
        ...

    def write_products(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
        """The same with the plan's products of activations alone: linear layers stay float, tensors keep their names."""
        ...

    def audit(self, model: Path, blockmap: BlockMap, plan: QuantPlan, threads: int) -> Audit:
        """Which of the plan's layers run on integer kernels in a written model.

        Args:
            model: a file that ``write`` made, perhaps changed since.
            blockmap: what was found in the graph that it was made of.
            plan: that was written.
            threads: of the runtime; 0 takes one a core.
        """
        ...

    def estimate_saturation(
        self, layers: Layers, plan: QuantPlan, statistics: Statistics, workers: int
    ) -> Mapping[str, Saturation]:
        """Name of a linear -> how near calibration data comes to saturating it on some processor; none where none can be.

        Args:
            layers: what was found.
            plan: fitted.
            statistics: with sampled rows of the linears' inputs (``StatisticsRequest`` rows).
            workers: threads; 0 takes one a core.
        """
        ...
