"""The written-out gradients equal torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expressive_losses import regularizers
from expressive_losses.bounds import kernels
from expressive_losses.bounds.kernels import (
    abs_linear,
    abs_sum,
    batch_norm,
    conv2d_of_few_channels,
    conv_transpose2d_of_few_channels,
    flatten,
    interval_relu,
)
from expressive_losses.regularizers import _balance, shi_regularizer
from expressive_losses.types import Bounds, Box

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def leaf(*shape: int, layout=torch.contiguous_format) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64)
    return (x.to(memory_format=layout) if x.ndim == 4 else x).requires_grad_()


def assert_equal_with_gradients(ours, theirs, inputs):
    """Both are tuples of tensors; random directions back."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    directions = [torch.randn_like(a) for a in ours]
    found = [torch.autograd.grad(values, inputs, directions) for values in (ours, theirs)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shrink", [1.0, 0.8])
@pytest.mark.parametrize("hidden", [True, False])
def test_interval_relu(shrink, hidden, layout):
    """relu(c + s r) +- relu(c - s r), and the interval c +- r."""
    torch.manual_seed(0)
    center, radius = leaf(3, 4, 5, 5, layout=layout), leaf(3, 4, 5, 5, layout=layout)
    total, width, inputs = interval_relu(center, radius.abs(), shrink, hidden)
    low, high = F.relu(center - radius.abs()), F.relu(center + radius.abs())
    high = torch.where(low > 0, high, shrink * high)
    ours, theirs = [total, width], [high + low, high - low]
    if hidden:
        ours += [inputs.lower, inputs.upper]
        theirs += [center - radius.abs(), center + radius.abs()]
    assert_equal_with_gradients(ours, theirs, (center, radius))
    assert (inputs is not None) == hidden


@pytest.mark.parametrize("used", [slice(0, 2), slice(2, 4)], ids=["only the outputs", "only the inputs"])
def test_interval_relu_with_a_part_of_the_gradients(used):
    torch.manual_seed(1)
    center, radius = leaf(2, 6), leaf(2, 6)
    total, width, inputs = interval_relu(center, radius.abs())
    low, high = F.relu(center - radius.abs()), F.relu(center + radius.abs())
    ours = (total, width, inputs.lower, inputs.upper)[used]
    theirs = (high + low, high - low, center - radius.abs(), center + radius.abs())[used]
    assert_equal_with_gradients(ours, theirs, (center, radius))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3)], ids=["images", "vectors"])
def test_batch_norm_with_gradient_through_its_statistics(affine, shape, layout):
    torch.manual_seed(2)
    x, weight, bias = leaf(*shape, layout=layout), leaf(3), leaf(3)
    parameters = (weight, bias) if affine else (None, None)
    y, (mean, variance) = batch_norm(x, *parameters, 1e-5)
    dims = [d for d in range(x.ndim) if d != 1]
    theirs = F.batch_norm(x, None, None, *parameters, training=True, eps=1e-5)
    statistics = x.mean(dims), x.var(dims, correction=0)
    inputs = (x, weight, bias) if affine else (x,)
    assert_equal_with_gradients((y, mean, variance), (theirs, *statistics), inputs)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}])
def test_convolution_of_few_channels(options):
    torch.manual_seed(3)
    layer = nn.Conv2d(2, 5, 3, **options).double().requires_grad_(False)
    x = leaf(4, 2, 9, 8)
    ours = conv2d_of_few_channels(x, layer.weight, layer.bias, layer)
    assert_equal_with_gradients((ours,), (layer(x),), (x,))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}])
def test_transposed_convolution_of_few_channels(options):
    """The linear map whose product with any image is the convolution's: torch's own gradient, and its gradients."""
    torch.manual_seed(4)
    layer, x, weight = nn.Conv2d(2, 5, 3, **options).double(), leaf(4, 2, 9, 8), leaf(5, 2, 3, 3)
    y = F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    to_y = leaf(*y.shape)
    (theirs,) = torch.autograd.grad(y, x, to_y, create_graph=True)
    ours = conv_transpose2d_of_few_channels(to_y, weight, x.shape[2:], layer)
    assert_equal_with_gradients((ours,), (theirs,), (to_y, weight))


def in_small_blocks(monkeypatch, size: int) -> None:
    original = kernels.in_blocks
    for module in (kernels, regularizers):
        monkeypatch.setattr(module, "in_blocks", lambda x, _=0: original(x, size))


@pytest.mark.parametrize("size", [1, 13, 10**6], ids="blocks of {} numbers".format)
def test_abs_linear(monkeypatch, size):
    in_small_blocks(monkeypatch, size)
    torch.manual_seed(5)
    x, weight = leaf(4, 6), leaf(5, 6)
    assert_equal_with_gradients((abs_linear(x, weight),), (F.linear(x, weight.abs()),), (x, weight))


@pytest.mark.parametrize("size", [1, 13, 10**6], ids="blocks of {} numbers".format)
def test_abs_sum(monkeypatch, size):
    in_small_blocks(monkeypatch, size)
    torch.manual_seed(5)
    x = leaf(5, 6, 1, 2)
    assert_equal_with_gradients((abs_sum(x),), (x.abs().sum(),), (x,))


def test_blocks_are_the_whole_in_order():
    x = torch.arange(30).view(5, 6)
    for size, count in ((1, 5), (12, 3), (29, 2), (30, 1)):
        assert len(kernels.in_blocks(x, size)) == count
        assert torch.equal(torch.cat(kernels.in_blocks(x, size)), x)
    assert len(kernels.in_blocks(torch.zeros(0, 6), 1)) == 1


def test_flatten():
    x = leaf(3, 4, 5, 2, layout=torch.channels_last)
    assert_equal_with_gradients((flatten(x),), (x.flatten(1),), (x,))


@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["mixed", "no neuron is surely inactive"])
@pytest.mark.parametrize("size", [1, 10**6], ids="blocks of {} numbers".format)
def test_shi_regulariser_is_the_formula(monkeypatch, shift, size):
    """The docstring's formula in torch's own operations, one layer at a time."""
    in_small_blocks(monkeypatch, size)
    torch.manual_seed(4)
    tol, layers = 0.5, []
    lowers, uppers = [], []
    box = Box(torch.zeros(4, 3, dtype=torch.float64), torch.full((4, 3), 0.2, dtype=torch.float64))
    for size in (7, 9):
        lower = (torch.randn(4, size, dtype=torch.float64) + shift).requires_grad_()
        upper = (lower.detach() + torch.rand(4, size, dtype=torch.float64)).requires_grad_()
        lowers.append(lower)
        uppers.append(upper)
        center, active, inactive = (lower + upper) / 2, lower > 0, upper < 0
        square = (center - center.mean()) ** 2
        mean = _balance((center * active).mean(), -(center * inactive).mean())
        var = _balance((square * active).sum(), (square * inactive).sum())
        width = ((upper - lower) / 2).mean()
        layers.append(F.relu(tol - 0.1 / width) / tol + (F.relu(tol - mean) + F.relu(tol - var)) / tol)
    expected = 0.5 * (1 - 0.25) * torch.stack(layers).mean()
    hidden = tuple(Box(lower, upper) for lower, upper in zip(lowers, uppers, strict=True))
    ours = shi_regularizer(Bounds(torch.zeros(4, 1), box, hidden), 0.25, 0.5, tol)
    assert_equal_with_gradients((ours,), (expected,), [*lowers, *uppers])
