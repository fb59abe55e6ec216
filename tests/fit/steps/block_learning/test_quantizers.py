"""Learnable quantizers: equal to the numpy ones, with the gradients that the docstrings state."""

import numpy as np
import pytest
import torch

from onnxvitq.core.formats import INT8, PerChannel, PerTensor, TensorFormat, activation_format, weight_format
from onnxvitq.fit.steps.block_learning.quantizers import ActivationQuantizer, Factor, WeightQuantizer, round_through
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight

BITS = pytest.mark.parametrize("bits", [3, 4, 8])


def activations(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(40, 30)).astype(np.float32)


@BITS
def test_an_activation_is_quantized_as_numpy_does_it(bits: int) -> None:
    params = params_from_range(-1.5, 2.0, activation_format(bits))
    module = ActivationQuantizer(params, learned=True)
    x = activations()
    found = module(torch.from_numpy(x)).detach().numpy()
    expected = fake_quantize(x, params)
    close = np.isclose(
        found, expected, atol=1e-5
    )  # the scale went through a logarithm: a tie may fall to the other side
    assert close.mean() > 0.999
    assert module.params().zero_point == params.zero_point
    assert module.params().scale == pytest.approx(params.scale, rel=1e-6)


@BITS
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_gradients_are_those_of_autograd(bits: int, drop: float) -> None:
    spec = activation_format(bits)
    module = ActivationQuantizer(params_from_range(-1.5, 1.0, spec), learned=True)
    module.drop = drop
    x = torch.from_numpy(activations()).requires_grad_()
    weight = torch.from_numpy(activations(1))
    torch.manual_seed(0)
    (module(x) * weight).sum().backward()
    found = [x.grad, module.log_scale.grad, module.zero.grad]
    log_scale, zero = (one.detach().clone().requires_grad_() for one in (module.log_scale, module.zero))
    again = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    scale, rounded = log_scale.exp(), round_through(zero)
    y = (torch.clamp(round_through(again / scale) + rounded, spec.qmin, spec.qmax) - rounded) * scale
    if drop:
        torch.manual_seed(0)
        module._pool = torch.empty(0)
        kept = module._kept(x.shape)
        y = kept * again + (1 - kept) * y
    (y * weight).sum().backward()
    for one, other in zip(found, (again.grad, log_scale.grad, zero.grad), strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)  # sums of 1200 float32 products


def test_a_zero_point_of_zero_stays() -> None:
    spec = activation_format(4)
    module = ActivationQuantizer(params_from_range(0.0, 1.0, spec), learned=True)
    assert module.log_scale.requires_grad
    assert not module.zero.requires_grad
    assert not ActivationQuantizer(params_from_range(-1.0, 1.0, spec), learned=False).zero.requires_grad


@BITS
def test_a_weight_comes_back_on_its_grid(bits: int) -> None:
    weight = activations(2)
    params = params_from_weight(weight, weight_format(bits))
    module = WeightQuantizer(weight, params, learned=True)
    values, found = module.result()
    np.testing.assert_allclose(values, fake_quantize(weight, params), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fake_quantize(values, found), values, rtol=1e-5, atol=1e-6)
    module().sum().backward()
    assert module.codes.grad is not None
    assert (module.codes.grad != 0).any()


@pytest.mark.parametrize("axis", [1, None])
def test_a_factor_is_quantized_as_numpy_does_it(axis: int | None) -> None:
    values = activations(3)
    spec = TensorFormat(INT8, PerTensor() if axis is None else PerChannel(axis))
    module = Factor(values, spec)
    kept, params = module.result()
    np.testing.assert_array_equal(kept, values)
    np.testing.assert_allclose(module().detach().numpy(), fake_quantize(values, params), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params.scale, params_from_weight(values, spec).scale, rtol=1e-6)


def test_dropped_elements_are_as_many_as_asked_for_and_others_each_time() -> None:
    module = ActivationQuantizer(params_from_range(-4.0, 4.0, activation_format(2)), learned=True)
    module.drop = 0.3
    x = torch.from_numpy(activations())
    masks = [(module(x) == x).to(torch.float32) for _ in range(2)]
    assert masks[0].mean() == pytest.approx(0.3, abs=0.05)
    assert not torch.equal(*masks)
    module.eval()
    assert (module(x) == x).to(torch.float32).mean() < 0.01
