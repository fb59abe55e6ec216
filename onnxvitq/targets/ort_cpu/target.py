"""onnxruntime's CPU execution provider as a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxvitq.core.formats import NumberFormat, TensorFormat, activation_format, weight_format
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.quantize_options import TargetName
from onnxvitq.core.statistics import Statistics
from onnxvitq.numerics.saturation import Saturation
from onnxvitq.report.model_records import Audit
from onnxvitq.targets.ort_cpu.kernels import audit
from onnxvitq.targets.ort_cpu.layout import apply_plan, apply_products
from onnxvitq.targets.ort_cpu.limits import estimate_linears
from onnxvitq.targets.ort_cpu.native import is_native

# Those on which two u8 x s8 products are added in 16 bits: AVX2, and AVX512 without VNNI. "auto" is one model for every
# processor: on this machine's own, whatever it is, a file that others cannot run would be found out by its users.
ADD_IN_16_BITS: frozenset[TargetName] = frozenset({"auto", "x86-avx2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtCpu:
    """Writes QuantizeLinear, DequantizeLinear and what onnxruntime turns into integer kernels.

    Attributes:
        processor: that the model is to be right on; "auto" means all of them.
        activations: the number format of all activations, whatever bits are asked for; one that the provider has no kernel
            of is simulated in float. None takes unsigned codes of the bits that are asked for.
    """

    processor: TargetName = "auto"
    activations: NumberFormat | None = None

    @property
    def name(self) -> str:
        """As in the report."""
        extra = "" if self.activations is None else f", {self.activations} activations"
        return f"ort-cpu ({self.processor}{extra})"

    def weight_format(self, bits: int) -> TensorFormat:
        """Signed, a scale an output; limited where a processor could saturate."""
        native = self.activations is None or is_native(TensorFormat(self.activations))
        return weight_format(bits, saturation_free=native and self.processor in ADD_IN_16_BITS)

    def activation_format(self, bits: int) -> TensorFormat:
        """A scale and a zero point a tensor."""
        return activation_format(bits) if self.activations is None else TensorFormat(self.activations)

    def write(self, graph: gs.Graph, layers: Layers, plan: QuantPlan, *, packed: bool = False) -> gs.Graph:
        """See ``layout.apply_plan``."""
        return apply_plan(graph, layers, plan, packed=packed)

    def write_products(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
        """See ``layout.apply_products``."""
        return apply_products(graph, layers, plan)

    def audit(self, model: Path, blockmap: BlockMap, plan: QuantPlan, threads: int) -> Audit:
        """Open the model as a user would and look at what the optimiser made of it."""
        return audit(model, blockmap, plan, threads)

    def estimate_saturation(
        self, layers: Layers, plan: QuantPlan, statistics: Statistics, workers: int
    ) -> Mapping[str, Saturation]:
        """Of every linear on an integer kernel, on processors that add two products in 16 bits, whatever ``processor`` is."""
        return estimate_linears(layers, plan, statistics, workers)
