"""Initialisation for interval training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def shi_initialize(
    module: nn.Module, generator: torch.Generator | None = None, after_sums: Iterable[Tensor] = ()
) -> None:
    """Draw weights from N(0, 2 pi / fan_in^2): the width of interval bounds then neither grows nor shrinks with depth.

    Applies to every convolution and linear layer but the last; the last one and all biases keep torch's
    default, as published. Intervals of two branches add up: weights that read a sum are halved.

    Args:
        module: initialised in place.
        generator: ``None``: torch's global one.
        after_sums: the weights to halve, see :meth:`expressive_losses.bounds.BoundedNetwork.weights_after_sums`.

    Source: Shi et al. (2021), "Fast certified robust training", section 4.2; the halving is in its code.
    """
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in, generator=generator)
    drawn = {id(layer.weight) for layer in layers[:-1]}
    for weight in after_sums:
        if id(weight) in drawn:
            weight.div_(2)
