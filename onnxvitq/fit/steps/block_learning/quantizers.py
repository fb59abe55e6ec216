"""Quantizers whose parameters have gradients: what the plan writes, computed in float with a straight-through rounding.

``y = (clip(round(x / s) + z) - z) s``: the gradient passes through the rounding as if it were not there (LSQ, Esser et al.
2020), so that of s tells the step from the clip. Everything is held in units in which one learning rate suits it: scales as
logarithms, weights in codes.

AIQViT's focusing quantizer of softmax outputs has a lower end b1 as well, below which code 0 stands for b1. Here b1 = 0. With
b1 > 0 the error of A V alone falls on the bundled model, by 0.1 to 0.6 dB at 3 and 4 bits and by 2 dB where the division comes
late; at 8 bits, and on a sentence encoder at any, by nothing (tools/focus_interval.py). The error of the model's output does
not fall: bundled model, W3A3, held-out, 15.6 dB with code 0 at 0, 13.7 dB with it at a tenth of a step, 15.4 dB at 0.15,
weights solved again each time. It would also cost a sum over V and an addition to the product.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxvitq.core.formats import QParams, TensorFormat
from onnxvitq.core.plan import Branch
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import params_from_weight
from onnxvitq.numerics.pairs import limit_pairs

SPARE = 4096  # elements by which a random draw is larger than what is taken of it


def round_through(x: Tensor) -> Tensor:
    """Rounded, ties to even; the gradient is that of x."""
    return x + (x.round() - x).detach()


def limited_through(codes: Tensor, spec: TensorFormat) -> Tensor:
    """Codes (I, O) as they are written where neighbours are limited (``numerics.pairs``); the gradient passes through."""
    if not spec.limits_pairs:
        return codes
    limited = codes.detach().numpy().copy()
    limit_pairs(limited)
    return codes + (torch.from_numpy(limited) - codes).detach()


class _FakeQuantize(torch.autograd.Function):
    """y of the module's docstring in one step, by hand: a fifth of the passes over memory that autograd would make.

    With ``kept`` (0 or 1, the shape of x) y = x where it is 1. Gradients, with q what is not kept: of x, inside the range and
    where kept; of log s, sum g (y - x) inside, sum g y outside; of z, - s sum g outside.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_scale: Tensor, zero: Tensor, bounds: tuple[int, int], kept: Tensor | None
    ) -> Tensor:
        scale, zero = log_scale.exp(), zero.round()
        codes = (x / scale).round_().add_(zero)
        y = codes.clamp(*bounds)
        inside = y.eq(codes).to(x.dtype)
        y.sub_(zero).mul_(scale)
        step = torch.addcmul(y, x, inside, value=-1)
        if kept is not None:
            y.lerp_(x, kept)
        ctx.save_for_backward(inside, step, scale, kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        inside, step, scale, kept = ctx.saved_tensors
        through = grad if kept is None else torch.addcmul(grad, grad, kept, value=-1)
        of_x = through * inside
        of_scale = torch.dot(through.reshape(-1), step.reshape(-1)) if ctx.needs_input_grad[1] else None
        of_zero = (of_x.sum() - through.sum()) * scale if ctx.needs_input_grad[2] else None
        if kept is not None:
            of_x.addcmul_(grad, kept)
        return of_x, of_scale, of_zero, None, None


class ActivationQuantizer(nn.Module):
    """One scale and zero point for a tensor.

    A zero point that is 0 stays 0: code 0 of a softmax output has to mean zero, so learning its scale learns the upper end of
    what is told apart (the focus of AIQViT's quantizer, with b1 = 0).

    Args:
        params: to start from.
        learned: whether they have gradients.

    Attributes:
        spec: the format.
        drop: share of the elements that stay as they are while it is trained, 0 to 1 (QDrop, Wei et al. 2022).
        log_scale: () natural logarithm of the scale.
        zero: () zero point, not rounded.
    """

    def __init__(self, params: QParams, *, learned: bool) -> None:
        super().__init__()
        self.spec, self.drop, self._pool = params.spec, 0.0, torch.empty(0)
        self.log_scale = nn.Parameter(torch.tensor(math.log(float(params.scale))), requires_grad=learned)
        zero = float(params.zero_point)
        self.zero = nn.Parameter(torch.tensor(zero), requires_grad=learned and zero != 0 and not params.spec.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized, of any shape."""
        bounds = (self.spec.qmin, self.spec.qmax)
        kept = self._kept(x.shape) if self.training and self.drop else None
        return _FakeQuantize.apply(x, self.log_scale, self.zero, bounds, kept)  # type: ignore[no-untyped-call]

    def _kept(self, shape: torch.Size) -> Tensor:
        """1 for the elements that stay as they are: a part of a larger random draw, made once; another part each time."""
        count = shape.numel()
        if len(self._pool) < count + SPARE:
            self._pool = (torch.rand(count + SPARE) < self.drop).to(torch.float32)
        start = int(torch.randint(SPARE, ()))
        return self._pool[start : start + count].reshape(shape)

    def params(self) -> QParams:
        """As the plan has it."""
        zero = min(max(round(float(self.zero.detach())), self.spec.qmin), self.spec.qmax)
        return QParams(spec=self.spec, scale=self.log_scale.detach().exp().numpy(), zero_point=np.array(zero))


class WeightQuantizer(nn.Module):
    """A weight in codes.

    Attributes:
        spec: the format.
        codes: (I, O), not rounded.
        log_scale: (O,) natural logarithms of the scales.
    """

    def __init__(self, weight: FloatArray, params: QParams, *, learned: bool) -> None:
        super().__init__()
        self.spec = params.spec
        scale = torch.from_numpy(np.array(params.scale))
        self.codes = nn.Parameter(torch.from_numpy(np.array(weight)) / scale, requires_grad=learned)
        self.log_scale = nn.Parameter(scale.log(), requires_grad=learned)

    def forward(self) -> Tensor:
        """The weight that the codes stand for (I, O)."""
        codes = torch.clamp(round_through(self.codes), self.spec.qmin, self.spec.qmax)
        return limited_through(codes, self.spec) * self.log_scale.exp()

    def result(self) -> tuple[FloatArray, QParams]:
        """The weight on its grid, and its parameters."""
        with torch.no_grad():
            weight, scale = self.forward().numpy(), self.log_scale.exp().numpy()
        return weight, QParams(spec=self.spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))


class Factor(nn.Module):
    """One factor of a branch. Its scale (a column's or the whole factor's) follows the largest entry.

    Attributes:
        spec: the format.
        values: (R, C) real values.
    """

    def __init__(self, values: FloatArray, spec: TensorFormat) -> None:
        super().__init__()
        self.spec = spec
        self.values = nn.Parameter(torch.from_numpy(np.array(values)))

    def scale(self) -> Tensor:
        """One a column (C,), or () for all."""
        return torch.from_numpy(np.array(params_from_weight(self.values.detach().numpy(), self.spec).scale))

    def forward(self) -> Tensor:
        """The factor that its codes stand for (R, C)."""
        scale = self.scale()
        return limited_through(round_through(self.values / scale), self.spec) * scale

    def result(self) -> tuple[FloatArray, QParams]:
        """Its values and their parameters."""
        scale = self.scale().numpy()
        zero = np.zeros(scale.shape, np.int64)
        return self.values.detach().numpy(), QParams(spec=self.spec, scale=scale, zero_point=zero)


class RankGate(nn.Module):
    """How far each rank of a branch is open: the chance that the rank sought is at least that (DARTS, Liu et al. 2019).

    The candidates are nested, the first r columns of one A: the mixture of all candidates then costs no more than the
    largest, and its expected rank is the sum of the gates.
    """

    def __init__(self, candidates: Sequence[int], rank: int) -> None:
        super().__init__()
        self.candidates = [candidate for candidate in sorted({*candidates, 0}) if candidate <= rank]
        self.choice = nn.Parameter(torch.zeros(len(self.candidates)))
        open_to = torch.arange(rank)[None] < torch.tensor(self.candidates)[:, None]
        self._open = open_to.to(torch.float32)  # (candidates, rank)

    def forward(self) -> Tensor:
        """One gate a rank, 0 to 1, falling."""
        return torch.softmax(self.choice, 0) @ self._open

    def chosen(self) -> int:
        """The most likely candidate."""
        return self.candidates[int(self.choice.argmax())]


class GroupBranch(nn.Module):
    """The branches of the linear layers that read one tensor.

    Attributes:
        a: their common factor (I, r).
        b: a factor (r, O) a layer.
        width: bytes of one rank.
        inner: quantizer of z A.
        gate: of the ranks, while one is sought; None else.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        first = branches[0]
        self.a = Factor(first.a, first.a_params.spec)
        self.b = nn.ModuleList(Factor(branch.b, branch.b_params.spec) for branch in branches)
        self.width = first.a.shape[0] + sum(branch.b.shape[1] for branch in branches)
        self.inner = ActivationQuantizer(first.inner, learned=True)
        self.gate: RankGate | None = None

    def forward(self, codes: Tensor) -> Tensor:
        """The fake-quantized input (.., I) -> z A as its codes stand for it (.., r)."""
        inner: Tensor = self.inner(codes @ self.a())
        return inner if self.gate is None else inner * self.gate()

    def results(self) -> list[Branch]:
        """The branches as they will be written, one a layer."""
        a, a_params = self.a.result()
        branches = []
        for factor in self.b:
            assert isinstance(factor, Factor)
            b, b_params = factor.result()
            branches.append(Branch(a=a, b=b, a_params=a_params, b_params=b_params, inner=self.inner.params()))
        return branches
