"""Regularisers added to every loss: Shi et al.'s bound terms and L1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expressive_losses.types import Bounds, Box

_FLOOR = 1e-12  # as published: keeps the quotients finite


def shi_regularizer(bounds: Bounds, eps_fraction: float, weight: float = 0.5, tol: float = 0.5) -> Tensor:
    """Keep bounds tight and ReLUs balanced while eps rises.

    R = lambda (1 - eps / eps_max) (tightness + relu), each a mean over the ReLU layers:
    tightness = [tol - width_0 / width_i]_+ / tol, where width is the mean half-width of a layer's bounds and 0
    the input; relu = ([tol - r(mean)]_+ + [tol - r(var)]_+) / tol, where r is the ratio active : inactive (or
    its inverse, <= 1) of the centres' mean and of their squared deviation. As published, the relu term of a
    layer is skipped when it is not finite (no ReLU is surely active or inactive there).

    Args:
        bounds: of one pass, input normalised (as the published runs have it).
        eps_fraction: eps / eps_max in [0, 1], before any train multiplier.
        weight: lambda.
        tol: tolerance.

    Source: Shi et al. (2021), "Fast certified robust training", section 4.3.
    """
    width = bounds.input.half_width.mean()
    layers = [_tightness(box, width, tol) + _relu_balance(box, tol) for box in bounds.relu_inputs]
    return weight * (1 - eps_fraction) * torch.stack(layers).mean()


def _tightness(box: Box, input_width: Tensor, tol: float) -> Tensor:
    ratio = input_width / box.half_width.mean().clamp(min=_FLOOR)
    return F.relu(tol - ratio) / tol


def _relu_balance(box: Box, tol: float) -> Tensor:
    center = box.center
    active, inactive = box.lower > 0, box.upper < 0
    squared = (center - center.mean()) ** 2
    mean = _balance((center * active).mean(), -(center * inactive).mean())
    var = _balance((squared * active).sum(), (squared * inactive).sum())
    term = (F.relu(tol - mean) + F.relu(tol - var)) / tol
    return torch.where(torch.isfinite(term), term, torch.zeros_like(term))


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
    return torch.stack([layer.weight.abs().sum() for layer in layers]).sum()
