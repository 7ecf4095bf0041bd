"""Initialisation for interval training."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def shi_initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, 2 pi / fan_in^2): the width of interval bounds then neither grows nor shrinks with depth.

    Applies to every convolution and linear layer but the last; the last one and all biases keep torch's
    default, as published.

    Source: Shi et al. (2021), "Fast certified robust training", section 4.2.
    """
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in, generator=generator)
