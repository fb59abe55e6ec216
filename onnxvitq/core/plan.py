"""What will be written, as data: a format and parameters for every tensor that is quantized, new weights and biases. Frozen.

A plan goes to bytes (an .npz) and back without a difference.
"""

import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from onnxvitq.core.errors import PlanError
from onnxvitq.core.formats import QParams, TensorFormat
from onnxvitq.core.layers import BlockMap, Linear, Product, Site, products
from onnxvitq.core.tensors import FloatArray

PLAN_VERSION = 4
# What numpy, zipfile and json raise on bytes that are cut short, altered, or something else altogether.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, EOFError, OSError, RuntimeError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """What is to be quantized, without the graph.

    Attributes:
        blockmap: what was found in the graph.
        constants: name of a tensor -> its float32 values: weights (I, O), biases (O,), constant operands of products.
    """

    blockmap: BlockMap
    constants: Mapping[str, FloatArray]

    def weight(self, linear: str) -> FloatArray:
        """(I, O) weight of a linear layer, by the layer's name."""
        return self.constants[self.blockmap.linear(linear).weight]

    def bias(self, linear: str) -> FloatArray:
        """(O,) bias of a linear layer; zeros where it has none."""
        layer = self.blockmap.linear(linear)
        return self.constants[layer.bias].reshape(-1) if layer.bias else np.zeros(layer.out_features, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteDecision:
    """What is decided of one site.

    Attributes:
        site: the tensor, and the nodes that are to read its codes.
        spec: the format that is asked for.
        params: fitted; None before the fit, and where the tensor is to stay float.
    """

    site: Site
    spec: TensorFormat
    params: QParams | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """z A B, added to a linear layer's quantized product; z is the quantized input that the product reads.

    Attributes:
        a: (I, r) real values of the first factor.
        b: (r, O) real values of the second.
        a_params: of the first factor's codes, a scale a column.
        b_params: of the second's, one scale.
        inner: of z A, which is quantized, too; one scale.

    Raises:
        ValueError: the factors do not fit each other, or have rank 0.
    """

    a: FloatArray
    b: FloatArray
    a_params: QParams
    b_params: QParams
    inner: QParams

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[1] != self.b.shape[0] or not self.a.shape[1]:
            raise ValueError(f"expected factors (I, r) and (r, O), got {self.a.shape} and {self.b.shape}")
        for name in ("a", "b"):
            object.__setattr__(self, name, _frozen({name: getattr(self, name)})[name])

    @property
    def rank(self) -> int:
        """How many columns A has."""
        return self.a.shape[1]

    @property
    def nbytes(self) -> int:
        """Of the factors' codes and scales, in a file."""
        factors = ((self.a, self.a_params), (self.b, self.b_params))
        return sum(values.size * params.spec.storage.itemsize + params.scale.nbytes for values, params in factors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantPlan:
    """What a model is written from, beside its float graph.

    Attributes:
        decisions: tensor -> its format and parameters.
        biases: linear -> (O,) its new bias, real values.
        kept_float: node -> why it is float on purpose.
        weights: linear -> (I, O) its new weight, real values that are quantized when they are written.
        branches: linear -> the branch of low rank beside it.
        dynamic: tensors, inputs of linears, whose range is measured at run time; their parameters in ``decisions`` count where
            a product of activations reads the same tensor.
        per_token: those of them whose rows are first divided by their largest magnitude, so that each has steps of its own.
    """

    decisions: Mapping[str, SiteDecision] = field(default_factory=dict)
    biases: Mapping[str, FloatArray] = field(default_factory=dict)
    kept_float: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, FloatArray] = field(default_factory=dict)
    branches: Mapping[str, Branch] = field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()
    per_token: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "biases", _frozen(self.biases))
        object.__setattr__(self, "weights", _frozen(self.weights))

    def params(self, tensor: str) -> QParams | None:
        """The fitted parameters of a tensor; None when it stays float."""
        decision = self.decisions.get(tensor)
        return None if decision is None else decision.params

    def with_params(self, fitted: Mapping[str, QParams]) -> "QuantPlan":
        """The plan with these tensors' parameters replaced."""
        decisions = dict(self.decisions)
        for tensor, params in fitted.items():
            decisions[tensor] = replace(decisions[tensor], params=params)
        return replace(self, decisions=decisions)

    def with_biases(self, biases: Mapping[str, FloatArray]) -> "QuantPlan":
        """The plan with these linears' biases replaced."""
        return replace(self, biases={**self.biases, **biases})

    def with_weights(self, weights: Mapping[str, FloatArray]) -> "QuantPlan":
        """The plan with these linears' weights replaced."""
        return replace(self, weights={**self.weights, **weights})

    def with_branches(self, branches: Mapping[str, Branch]) -> "QuantPlan":
        """The plan with these linears' branches replaced."""
        return replace(self, branches={**self.branches, **branches})


def _frozen(arrays: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Read-only float32 copies. An array that is read-only already is shared: plans made of one another hold it once."""
    copies = {name: array if _is_frozen(array) else np.array(array, np.float32) for name, array in arrays.items()}
    for copy in copies.values():
        copy.setflags(write=False)
    return copies


def _is_frozen(array: FloatArray) -> bool:
    return array.dtype == np.float32 and array.flags.owndata and not array.flags.writeable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelScaling:
    """u -> (u - shift) / scale for each channel of the output u of ``source``, taken back by ``readers``.

    Attributes:
        kind: "norm" (a normalisation and linears), "value" (value linear and projection), "scores" (query linear and key
            linear: the query is divided by the scale, the key loses the shift and is multiplied by it) or "online"
            (``source`` is the tensor itself: nothing before it takes the scale, so a Mul is written; it costs time).
        source: name of what puts u out.
        readers: names of the linears that take the scaling back.
        shift: (C,) in the units of u.
        scale: (C,), positive.
        gain_db: SQNR of the readers' outputs on held-out rows, in dB more than without.
    """

    kind: Literal["norm", "value", "scores", "online"]
    source: str
    readers: tuple[str, ...]
    shift: FloatArray
    scale: FloatArray
    gain_db: float


def plan_to_bytes(plan: QuantPlan) -> bytes:
    """The plan as an .npz: one JSON header, and the arrays."""
    arrays: dict[str, Any] = {}
    decisions = []
    for index, decision in enumerate(plan.decisions.values()):
        if decision.params is not None:
            arrays[f"scale{index}"], arrays[f"zero{index}"] = decision.params.scale, decision.params.zero_point
        decisions.append({"site": asdict(decision.site), "spec": decision.spec.to_dict()})
    for index, bias in enumerate(plan.biases.values()):
        arrays[f"bias{index}"] = bias
    for index, weight in enumerate(plan.weights.values()):
        arrays[f"weight{index}"] = weight
    header: dict[str, Any] = {"version": PLAN_VERSION, "decisions": decisions}
    header |= {"biases": list(plan.biases), "weights": list(plan.weights)}
    header["kept_float"] = dict(plan.kept_float)
    header["branches"] = [_branch_header(name, branch) for name, branch in plan.branches.items()]
    for index, branch in enumerate(plan.branches.values()):
        arrays |= {f"branch{index}_{name}": value for name, value in _branch_arrays(branch).items()}
    header["dynamic"], header["per_token"] = sorted(plan.dynamic), sorted(plan.per_token)
    file = io.BytesIO()
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return file.getvalue()


def plan_from_bytes(data: bytes) -> QuantPlan:
    """The plan that ``plan_to_bytes`` wrote.

    Raises:
        PlanError: not a plan, or of another version.
    """
    try:
        arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))  # reads them all, and so checks them all
        header = json.loads(arrays["header"].tobytes())
        version = header["version"]
        plan = _plan(header, arrays) if version == PLAN_VERSION else None
    except UNREADABLE as error:
        raise PlanError("plan", "not a plan that onnxvitq wrote") from error
    if plan is None:
        raise PlanError("plan", f"expected version {PLAN_VERSION}, got {version}")
    return plan


def _plan(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> QuantPlan:
    decisions: dict[str, SiteDecision] = {}
    for index, entry in enumerate(header["decisions"]):
        spec = TensorFormat.from_dict(entry["spec"])
        consumers = tuple((name, port) for name, port in entry["site"].pop("consumers"))
        params = None
        if f"scale{index}" in arrays:
            params = QParams(spec=spec, scale=arrays[f"scale{index}"], zero_point=arrays[f"zero{index}"])
        site = Site(**entry["site"], consumers=consumers)
        decisions[site.name] = SiteDecision(site=site, spec=spec, params=params)
    biases = {name: arrays[f"bias{index}"] for index, name in enumerate(header["biases"])}
    weights = {name: arrays[f"weight{index}"] for index, name in enumerate(header["weights"])}
    branches = {
        entry["name"]: _branch(entry, arrays, f"branch{index}") for index, entry in enumerate(header["branches"])
    }
    return QuantPlan(
        decisions=decisions,
        biases=biases,
        kept_float=header["kept_float"],
        weights=weights,
        dynamic=frozenset(header["dynamic"]),
        branches=branches,
        per_token=frozenset(header["per_token"]),
    )


BRANCH_PARAMS = ("a_params", "b_params", "inner")


def _branch_header(name: str, branch: Branch) -> dict[str, Any]:
    return {"name": name, "specs": {part: getattr(branch, part).spec.to_dict() for part in BRANCH_PARAMS}}


def _branch_arrays(branch: Branch) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"a": branch.a, "b": branch.b}
    for part in BRANCH_PARAMS:
        params = getattr(branch, part)
        arrays[f"{part}_scale"], arrays[f"{part}_zero"] = params.scale, params.zero_point
    return arrays


def _branch(header: dict[str, Any], arrays: Mapping[str, np.ndarray], key: str) -> Branch:
    params = {
        part: QParams(
            spec=TensorFormat.from_dict(spec),
            scale=arrays[f"{key}_{part}_scale"],
            zero_point=arrays[f"{key}_{part}_zero"],
        )
        for part, spec in header["specs"].items()
    }
    return Branch(a=arrays[f"{key}_a"], b=arrays[f"{key}_b"], **params)


def linear_groups(layers: Layers, plan: QuantPlan) -> dict[str, list[str]]:
    """Input tensor -> names of the planned linears that read it."""
    groups: dict[str, list[str]] = {}
    for linear in layers.blockmap.linears:
        if linear.input in plan.decisions and (linear.name, 0) in plan.decisions[linear.input].site.consumers:
            groups.setdefault(linear.input, []).append(linear.name)
    return groups


def only(plan: QuantPlan, tensors: Collection[str]) -> QuantPlan:
    """The plan with these sites quantized and all others float; weights and biases as the float model has them."""
    decisions = {
        name: decision if name in tensors else replace(decision, params=None)
        for name, decision in plan.decisions.items()
    }
    nothing: Mapping[str, FloatArray] = {}
    return replace(plan, decisions=decisions, biases=nothing, weights=nothing)


def planned_linear(plan: QuantPlan, linear: Linear) -> bool:
    """Whether the plan quantizes a linear: its input and its weight."""
    return plan.params(linear.input) is not None and plan.params(linear.weight) is not None and _wants(plan, linear)


def _wants(plan: QuantPlan, linear: Linear) -> bool:
    """Whether this linear is among the readers of its input that are to read codes (another reader may be excluded)."""
    return any(name == linear.name for name, _ in plan.decisions[linear.input].site.consumers)


def planned_products(plan: QuantPlan, blockmap: BlockMap) -> tuple[str, ...]:
    """Names of the products of activations (node names) whose two operands the plan quantizes."""
    return tuple(node for node, operands in products(blockmap) if all(reads(plan, tensor, node) for tensor in operands))


def reads(plan: QuantPlan, tensor: str, node: str) -> bool:
    """Whether a node is to read a tensor on codes: the tensor has parameters, and the node is among its readers."""
    return plan.params(tensor) is not None and any(name == node for name, _ in plan.decisions[tensor].site.consumers)


def without_nodes(plan: QuantPlan, reasons: Mapping[str, str]) -> QuantPlan:
    """The plan with these linears and products in float, each with its reason; other readers of their tensors go on."""
    decisions: dict[str, SiteDecision] = {}
    for tensor, decision in plan.decisions.items():
        consumers = tuple(reader for reader in decision.site.consumers if reader[0] not in reasons)
        if consumers:
            decisions[tensor] = replace(decision, site=replace(decision.site, consumers=consumers))
    weights = {name: weight for name, weight in plan.weights.items() if name not in reasons}
    biases = {name: bias for name, bias in plan.biases.items() if name not in reasons}
    kept_float = {**plan.kept_float, **reasons}
    return replace(plan, decisions=decisions, weights=weights, biases=biases, kept_float=kept_float)


def without_products(plan: QuantPlan, products: Sequence[Product]) -> QuantPlan:
    """The plan with these products in float: their operands keep their parameters for their other readers."""
    decisions, names = dict(plan.decisions), {product.name for product in products}
    for tensor in {tensor for product in products for tensor in (product.left, product.right)}:
        site = decisions[tensor].site
        consumers = tuple(reader for reader in site.consumers if reader[0] not in names)
        if consumers:
            decisions[tensor] = replace(decisions[tensor], site=replace(site, consumers=consumers))
        else:
            del decisions[tensor]
    return replace(plan, decisions=decisions)


def is_planned_product(plan: QuantPlan, product: Product) -> bool:
    """Whether the plan has a format for both operands, and this product is to read codes of both."""
    return all(
        tensor in plan.decisions and any(name == product.name for name, _ in plan.decisions[tensor].site.consumers)
        for tensor in (product.left, product.right)
    )
