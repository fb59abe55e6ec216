"""Quantizers whose parameters have gradients: what the plan writes, computed in float with a straight-through rounding.

``y = (clip(round(x / s) + z) - z) s``: the gradient passes through the rounding as if it were not there (LSQ, Esser et al.
2020), so that of s tells the step from the clip. Everything is held in units in which one learning rate suits it: scales as
logarithms, weights in codes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from onnxvitq.plan import Branch
from onnxvitq.spec import FloatArray, QParams, QuantSpec


def round_through(x: Tensor) -> Tensor:
    """Rounded, ties to even; the gradient is that of x."""
    return x + (x.round() - x).detach()


class ActivationQuantizer(nn.Module):
    """One scale and zero point for a tensor. A zero point that is 0 stays 0: code 0 of a softmax output has to mean zero,
    so learning its scale learns the upper end of what is told apart (the focus of AIQViT's quantizer, with b1 = 0).

    ``drop``: share of the elements that stay as they are while it is trained (QDrop, Wei et al. 2022).
    """

    def __init__(self, params: QParams, *, learned: bool) -> None:
        super().__init__()
        self.spec, self.drop = params.spec, 0.0
        self.log_scale = nn.Parameter(torch.tensor(math.log(float(params.scale))), requires_grad=learned)
        zero = float(params.zero_point)
        self.zero = nn.Parameter(torch.tensor(zero), requires_grad=learned and zero != 0 and not params.spec.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized, of any shape."""
        scale, zero = self.log_scale.exp(), round_through(self.zero)
        y = (torch.clamp(round_through(x / scale) + zero, self.spec.qmin, self.spec.qmax) - zero) * scale
        return torch.where(torch.rand_like(x) < self.drop, x, y) if self.training and self.drop else y

    def params(self) -> QParams:
        """As the plan has it."""
        zero = min(max(round(float(self.zero.detach())), self.spec.qmin), self.spec.qmax)
        return QParams(spec=self.spec, scale=self.log_scale.detach().exp().numpy(), zero_point=np.array(zero))


class WeightQuantizer(nn.Module):
    """A weight (I, O) in codes, not rounded, and its scales (O,)."""

    def __init__(self, weight: FloatArray, params: QParams, *, learned: bool) -> None:
        super().__init__()
        self.spec = params.spec
        scale = torch.from_numpy(np.array(params.scale))
        self.codes = nn.Parameter(torch.from_numpy(np.array(weight)) / scale, requires_grad=learned)
        self.log_scale = nn.Parameter(scale.log(), requires_grad=learned)

    def forward(self) -> Tensor:
        """The weight that the codes stand for (I, O)."""
        codes = torch.clamp(round_through(self.codes), self.spec.qmin, self.spec.qmax)
        return codes * self.log_scale.exp()

    def result(self) -> tuple[FloatArray, QParams]:
        """The weight on its grid, and its parameters."""
        with torch.no_grad():
            weight, scale = self.forward().numpy(), self.log_scale.exp().numpy()
        return weight, QParams(spec=self.spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))


class Factor(nn.Module):
    """One factor of a branch: as many bits as its codes will have, a scale a column that follows the largest entry."""

    def __init__(self, values: FloatArray, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.values = nn.Parameter(torch.from_numpy(np.array(values)))

    def scale(self) -> Tensor:
        """One a column (C,)."""
        return self.values.detach().abs().amax(0).clamp_min(1e-12) / self.spec.qmax

    def forward(self) -> Tensor:
        """The factor that its codes stand for (R, C)."""
        scale = self.scale()
        return round_through(self.values / scale) * scale

    def result(self) -> tuple[FloatArray, QParams]:
        """Its values and their parameters."""
        scale = self.scale().numpy()
        zero = np.zeros(scale.shape, np.int64)
        return self.values.detach().numpy(), QParams(spec=self.spec, scale=scale, zero_point=zero)


class GroupBranch(nn.Module):
    """The branches of the linear layers that read one tensor: one A, one B a layer."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        first = branches[0]
        self.a = Factor(first.a, first.a_params.spec)
        self.b = nn.ModuleList(Factor(one.b, one.b_params.spec) for one in branches)
        self.inner = ActivationQuantizer(first.inner, learned=True)

    def forward(self, codes: Tensor) -> Tensor:
        """The fake-quantized input (.., I) -> z A as its codes stand for it (.., r)."""
        return self.inner(codes @ self.a())

    def results(self) -> list[Branch]:
        """One a layer."""
        a, a_params = self.a.result()
        found = []
        for factor in self.b:
            assert isinstance(factor, Factor)
            b, b_params = factor.result()
            found.append(Branch(a=a, b=b, a_params=a_params, b_params=b_params, inner=self.inner.params()))
        return found
