"""Regularisers added to every loss: Shi et al.'s bound terms and L1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from expressive_losses import distributed
from expressive_losses.bounds.kernels import abs_sum, in_blocks
from expressive_losses.types import Bounds, Box

_FLOOR = 1e-12  # as published: keeps the quotients finite


def shi_regularizer(bounds: Bounds, eps_fraction: float | Tensor, weight: float = 0.5, tol: float = 0.5) -> Tensor:
    """Keep bounds tight and ReLUs balanced while eps rises.

    R = lambda (1 - eps / eps_max) (tightness + relu), each a mean over the ReLU layers:
    tightness = [tol - width_0 / width_i]_+ / tol, where width is the mean half-width of a layer's bounds and 0
    the input; relu = ([tol - r(mean)]_+ + [tol - r(var)]_+) / tol, where r is the ratio active : inactive (or
    its inverse, <= 1) of the centres' mean and of their squared deviation. The relu term of a layer is skipped where
    no ReLU is surely active or inactive. 0 of a network without ReLUs.

    NOTE: the published code skips it also where ReLUs are surely active and none is surely inactive. Here it is a
    constant then: the same gradient, none.

    Args:
        bounds: of one pass, input normalised (as the published runs have it).
        eps_fraction: eps / eps_max in [0, 1], before any train multiplier.
        weight: lambda.
        tol: tolerance.

    Source: Shi et al. (2021), "Fast certified robust training", section 4.3.
    """
    input_width = bounds.input.half_width.detach()
    if not bounds.relu_inputs:
        return input_width.new_zeros(())
    width = distributed.summed_over_processes(input_width.sum()) / distributed.whole_count(input_width.numel())
    layers = [_layer(box, width, tol) for box in bounds.relu_inputs]
    return weight * (1 - eps_fraction) * torch.stack(layers).mean()


def _layer(box: Box, input_width: Tensor, tol: float) -> Tensor:
    """Return the sum of a layer's two terms."""
    width, mean_active, var_active, mean_inactive, var_inactive = _Moments.apply(box.lower, box.upper)
    tightness = F.relu(tol - input_width / width.clamp(min=_FLOOR)) / tol
    mean, var = _balance(mean_active, -mean_inactive), _balance(var_active, var_inactive)
    relu = (F.relu(tol - mean) + F.relu(tol - var)) / tol
    return tightness + torch.where(torch.isfinite(relu), relu, torch.zeros_like(relu))


class _Moments(Function):
    """Five scalars of the bounds l <= u on a layer, with centre c and m the mean of all c:

    the mean half-width; over all neurons the mean of c [l > 0] and the sum of (c - m)^2 [l > 0]; the same of [u < 0].
    Of the whole batch, also where several processes share it. Written out because torch would keep some twenty tensors
    of the layer's size for the gradient; this keeps the bounds alone, and makes others of a few samples at a time.
    """

    @staticmethod
    def forward(ctx, lower, upper):
        ctx.count = count = distributed.whole_count(lower.numel())
        total = torch.stack([(low + high).sum() for low, high in _in_parts(lower, upper)]).sum()
        mean = distributed.summed_over_processes(total) / (2 * count)
        ctx.save_for_backward(lower, upper, mean)
        sums = torch.stack([_sums(low, high, mean) for low, high in _in_parts(lower, upper)]).sum(0)
        width, active, var_active, inactive, var_inactive = distributed.summed_over_processes(sums).unbind()
        return width / count, active / count, var_active, inactive / count, var_inactive

    @staticmethod
    @once_differentiable
    def backward(ctx, to_width, to_mean_active, to_var_active, to_mean_inactive, to_var_inactive):
        lower, upper, mean = ctx.saved_tensors
        count, to_upper, sums = ctx.count, torch.empty_like(upper), []
        for low, high, slope in _in_parts(lower, upper, to_upper):
            active, inactive = _masks(low, high)
            torch.mul(active, 2 * to_var_active, out=slope).addcmul_(inactive, 2 * to_var_inactive)
            sums.append(slope.mul_(_centered(low, high, mean)).sum())
            slope.addcmul_(active, to_mean_active / count).addcmul_(inactive, to_mean_inactive / count)
        through_mean = distributed.summed_over_processes(torch.stack(sums).sum()) / count
        half = to_width / (2 * count)
        to_upper.sub_(through_mean).mul_(0.5)
        return to_upper - half, to_upper.add_(half)


def _in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of tensors of one shape along the batch, of 1 MiB on a CPU."""
    return zip(*(in_blocks(tensor, 2**18) for tensor in tensors), strict=True)


def _sums(lower: Tensor, upper: Tensor, mean: Tensor) -> Tensor:
    """Return the sums of half-widths, c [l > 0], (c - m)^2 [l > 0], c [u < 0] and (c - m)^2 [u < 0]."""
    center = _centered(lower, upper, mean)
    sums = [(upper - lower).sum() / 2]
    for mask in _masks(lower, upper):
        inside = center * mask
        sums += [inside.sum() + mean * mask.sum(), inside.mul_(center).sum()]
    return torch.stack(sums)


def _centered(lower: Tensor, upper: Tensor, mean: Tensor) -> Tensor:
    """Return the centres less their mean."""
    return (lower + upper).mul_(0.5).sub_(mean)


def _masks(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return [l > 0] and [u < 0] as 0 and 1 in floating point: products with booleans are slow."""
    return torch.gt(lower, 0, out=torch.empty_like(lower)), torch.lt(upper, 0, out=torch.empty_like(upper))


def _balance(active: Tensor, inactive: Tensor) -> Tensor:
    """Return min(a/b, b/a) = min(a, b) / max(a, b) in [0, 1]; NaN (the layer is then skipped) where both are 0.

    The quotient is formed on safe values first: a NaN that is masked afterwards would come back through the gradient.
    """
    larger, smaller = torch.maximum(active, inactive), torch.minimum(active, inactive)
    usable = larger > 0
    ratio = smaller / torch.where(usable, larger, torch.ones_like(larger))
    return torch.where(usable, ratio, torch.full_like(ratio, torch.nan))


def l1_norm(module: nn.Module) -> Tensor:
    """Return the sum of |W| over convolution and linear weights, nested ones too; no biases, no BatchNorm."""
    layers = (m for m in module.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)))
    return torch.stack([abs_sum(layer.weight) for layer in layers]).sum()
