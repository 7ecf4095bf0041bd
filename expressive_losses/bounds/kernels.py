"""The few operations that a training step on a plain chain is made of, with their gradients written out.

Each equals the composition of torch's own operations that its docstring names (tests compare values and gradients), but
passes over the activations fewer times and keeps fewer of them for the backward pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from expressive_losses import distributed
from expressive_losses.bounds.products import product
from expressive_losses.types import Box

#: Up to so many input channels, a CPU takes the input's gradient of a convolution faster by matrix products.
_FEW_CHANNELS = 4


class _IntervalReLU(Function):
    """See :func:`interval_relu`."""

    @staticmethod
    def forward(ctx, center, radius, shrink, hidden):
        ctx.set_materialize_grads(False)
        ctx.shrink = shrink
        lower, upper = center - radius, center + radius
        low, high = (lower.relu(), upper.relu()) if hidden else (lower.relu_(), upper.relu_())
        if shrink < 1:
            high = torch.where(low > 0, high, shrink * high)
        total, width = low + high, high.sub_(low)
        ctx.save_for_backward(total, width)
        return (total, width, lower, upper) if hidden else (total, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_total, to_width, *to_hidden):
        total, width = ctx.saved_tensors
        to_center = to_radius = None
        if to_total is not None or to_width is not None:
            to_total, to_width = (torch.zeros_like(total) if g is None else g for g in (to_total, to_width))
            # relu(upper) > 0 where total > 0, relu(lower) > 0 where total > width
            high = torch.ops.aten.threshold_backward(to_total + to_width, total, 0)
            low = torch.ops.aten.threshold_backward(to_total - to_width, total - width, 0)
            if ctx.shrink < 1:
                high = torch.where(total > width, high, ctx.shrink * high)
            to_center, to_radius = high + low, high.sub_(low)
        if any(g is not None for g in to_hidden):
            to_lower, to_upper = (torch.zeros_like(total) if g is None else g for g in to_hidden)
            to_center = _sum(to_center, to_upper + to_lower)
            to_radius = _sum(to_radius, to_upper - to_lower)
        return to_center, to_radius, None, None


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def interval_relu(
    center: Tensor, radius: Tensor, shrink: float = 1.0, hidden: bool = True
) -> tuple[Tensor, Tensor, Box | None]:
    """Return twice the centre and twice the radius of a ReLU's output interval, and its input interval.

    With l = centre - radius and u = centre + radius: relu(u) + relu(l) and relu(u) - relu(l). Twice, because the factor
    goes into the weights that follow at no cost (and without rounding). With ``shrink`` below 1, u is multiplied by it
    where l < 0 < u.

    Args:
        center, radius: of the input, (B, ...).
        shrink: factor on the upper bound of an unstable ReLU.
        hidden: whether to return the input interval (not shrunk); it takes memory.
    """
    found = _IntervalReLU.apply(center, radius, shrink, hidden)
    return found[0], found[1], Box(found[2], found[3]) if hidden else None


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance per channel of (B, C) or (B, C, ...), each (C,).

    The sums are arranged as a CPU does them fast: one reduction over all but the channels would take 15 times as long.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean = x.mean(0)
        return mean, (x - mean).square().mean(0)
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    mean = x.mean(2).mean(0)
    squared = (x - mean[:, None]).square()
    return mean, squared.mean(2).mean(0)


class _BatchNorm(Function):
    """See :func:`batch_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        mean, variance = batch_statistics(x)
        if distributed.processes() > 1:
            mean, variance = _of_all_processes(x, mean, variance)
        ctx.save_for_backward(x, weight, mean, variance)
        y, _, _ = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, to_y, to_mean, to_variance):
        x, weight, mean, variance = ctx.saved_tensors
        to_y = torch.zeros_like(x) if to_y is None else to_y.contiguous(memory_format=_layout(x))
        if distributed.processes() > 1:
            return _gradients_of_all_processes(to_y, to_mean, to_variance, x, weight, mean, variance, ctx.eps)
        inverse = torch.rsqrt(variance + ctx.eps)
        asked = [True, weight is not None, weight is not None]
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            to_y, x, weight, None, None, mean, inverse, True, ctx.eps, asked
        )
        if to_mean is not None or to_variance is not None:
            _add_gradient_of_statistics(to_x, x, mean, to_mean, to_variance)
        return to_x, to_weight, to_bias, None


def _of_all_processes(x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the rows of all processes, from those over this one's."""
    rows = x.numel() // x.shape[1]
    share = rows / distributed.whole_count(rows)
    overall = distributed.summed_over_processes(share * mean)
    return overall, distributed.summed_over_processes(share * (variance + (mean - overall).square()))


def _gradients_of_all_processes(to_y, to_mean, to_variance, x, weight, mean, variance, eps):
    """BatchNorm's gradients where the statistics are sums over all processes, and so are their gradients.

    Autograd takes the nodes of one graph in the same order everywhere, branches too: all processes add up one layer.
    """
    scale, inverse = torch.ones_like(mean) if weight is None else weight, torch.rsqrt(variance + eps)
    to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(  # CUDA insists on the saved statistics too
        to_y, x, scale, mean, variance, mean, inverse, False, eps, [True, True, True]
    )
    through_mean, through_variance = -scale * inverse * to_bias, -0.5 * scale * inverse**2 * to_weight
    to_statistics = torch.stack([
        through_mean if to_mean is None else through_mean + to_mean,
        through_variance if to_variance is None else through_variance + to_variance,
    ])  # fmt: skip
    to_mean, to_variance = distributed.summed_over_processes(to_statistics)
    _add_gradient_of_statistics(to_x, x, mean, to_mean, to_variance)
    return to_x, None if weight is None else to_weight, None if weight is None else to_bias, None


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return BatchNorm in train mode and the batch's mean and biased variance, (C,) each, all with gradient.

    torch's batch_norm beside :func:`batch_statistics`; that of torch adds up with less accuracy where the channels are
    last. Of the whole batch, also where several processes share it.
    """
    y, mean, variance = _BatchNorm.apply(x, weight, bias, eps)
    return y, (mean, variance)


def _add_gradient_of_statistics(to_x, x, mean, to_mean, to_variance) -> None:
    """Add in place: d mean / dx = 1/n and d variance / dx = 2 (x - mean) / n."""
    count = distributed.whole_count(x.numel() // x.shape[1])
    shape = (1, -1) + (1,) * (x.ndim - 2)
    shift = torch.zeros_like(mean) if to_mean is None else to_mean / count
    if to_variance is not None:
        slope = 2 * to_variance / count
        shift = shift - slope * mean
        to_x.addcmul_(x, slope.view(shape))
    to_x.add_(shift.view(shape))


class _FewChannelsConv(Function):
    """See :func:`conv2d_of_few_channels`."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(weight)
        ctx.geometry = x.shape[2:], stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_y):
        return _transposed(to_y, *ctx.saved_tensors, *ctx.geometry), None, None, None, None, None


def _transposed(y: Tensor, weight: Tensor, size, stride, padding, dilation) -> Tensor:
    """Return the transpose of a convolution, as a matrix product and a sum over the windows: images of ``size``.

    With few channels, on a CPU, several times faster than torch's.
    """
    return F.fold(weight.flatten(1).t() @ y.flatten(2), size, weight.shape[2:], dilation, padding, stride)


def conv2d_of_few_channels(x: Tensor, weight: Tensor, bias: Tensor | None, layer: torch.nn.Conv2d) -> Tensor:
    """Return the convolution of images with constant weights; the gradient goes to the images only.

    See :func:`has_few_channels`.
    """
    return _FewChannelsConv.apply(x, weight, bias, layer.stride, layer.padding, layer.dilation)


class _FewChannelsTranspose(Function):
    """See :func:`conv_transpose2d_of_few_channels`."""

    @staticmethod
    def forward(ctx, y, weight, size, stride, padding, dilation):
        ctx.save_for_backward(y, weight)
        ctx.geometry = stride, padding, dilation
        return _transposed(y, weight, size, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_x):
        y, weight = ctx.saved_tensors
        to_x = to_x.contiguous(memory_format=torch.channels_last)
        to_y = F.conv2d(to_x, weight, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = torch.nn.grad.conv2d_weight(to_x, weight.shape, y, *ctx.geometry)
        return to_y, to_weight, None, None, None, None


def conv_transpose2d_of_few_channels(y: Tensor, weight: Tensor, size: torch.Size, layer: torch.nn.Conv2d) -> Tensor:
    """Return the transpose of a layer's convolution, with this weight: from its output to its input, of ``size``.

    See :func:`has_few_columns`.
    """
    return _FewChannelsTranspose.apply(y, weight, size, layer.stride, layer.padding, layer.dilation)


def has_few_channels(layer: torch.nn.Module, x: Tensor) -> bool:
    """Return whether :func:`conv2d_of_few_channels` can do this layer, and faster than torch."""
    return (
        type(layer) is torch.nn.Conv2d
        and layer.in_channels <= _FEW_CHANNELS
        and layer.groups == 1
        and not isinstance(layer.padding, str)
        and x.device.type == "cpu"
    )


def has_few_columns(layer: torch.nn.Module, x: Tensor) -> bool:
    """Return whether :func:`conv_transpose2d_of_few_channels` can do this layer, and faster than torch.

    What it adds up are kernel height x width x channels numbers for each output, which should be few beside the
    output's channels; a stride leaves fewer outputs.
    """
    if not has_few_channels(layer, x):
        return False
    return 2 * layer.in_channels * math.prod(layer.kernel_size) <= layer.out_channels * math.prod(layer.stride)


#: Weights of a block in numbers: 8 MiB of float32.
_BLOCK = 2**21


def in_blocks(x: Tensor, size: int = _BLOCK) -> tuple[Tensor, ...]:
    """Return ``x`` in parts along its first dimension, of up to ``size`` numbers or one row; not on a GPU.

    What is made of one part at a time takes little memory, and stays in a CPU's cache; a GPU would rather launch once.
    """
    return x.split(max(1, size * len(x) // x.numel())) if x.device.type == "cpu" and x.numel() > size else (x,)


class _AbsLinear(Function):
    """See :func:`abs_linear`."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.cat([product(x, rows.abs().t()) for rows in in_blocks(weight)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_y):
        x, weight = ctx.saved_tensors
        to_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        blocks = in_blocks(weight)
        columns = to_y.split([len(rows) for rows in blocks], 1)
        for number, (rows, mine) in enumerate(zip(blocks, columns, strict=True)):
            if to_x is not None:
                to_x += product(mine, rows.abs())
            if to_weight is not None:
                torch.mul(product(mine.t(), x), rows.sgn(), out=in_blocks(to_weight)[number])
        return to_x, to_weight


def abs_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``F.linear(x, weight.abs())`` without keeping the absolute weights: they are made again for the gradient.

    And never all at once on a CPU, see :func:`in_blocks`.

    Args:
        x: (B, in); with more dimensions it is plain ``F.linear``.
        weight: (out, in).
    """
    return _AbsLinear.apply(x, weight) if x.ndim == 2 else F.linear(x, weight.abs())


class _AbsSum(Function):
    """See :func:`abs_sum`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.stack([part.abs().sum() for part in in_blocks(x)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, to_sum):
        (x,) = ctx.saved_tensors
        return x.sgn().mul_(to_sum)


def abs_sum(x: Tensor) -> Tensor:
    """Return ``x.abs().sum()``; of the size of ``x`` only the gradient is made."""
    return _AbsSum.apply(x)


class _Flatten(Function):
    """See :func:`flatten`."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_y):
        return to_y.view(ctx.shape).contiguous(memory_format=torch.channels_last)


def flatten(x: Tensor) -> Tensor:
    """Return ``x.flatten(1)``; the gradient is laid out as ``x`` was, since mixed layouts make what follows slow."""
    return _Flatten.apply(x) if _layout(x) is torch.channels_last else x.flatten(1)


def _layout(x: Tensor) -> torch.memory_format:
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
