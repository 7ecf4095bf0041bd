"""What a module is made into before auto_LiRPA traces it, and how it then bounds convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expressive_losses.bounds.conversion import padding_in_numbers


def with_padding_in_numbers(model: nn.Module) -> nn.Module:
    """Replace the padding "same" and "valid" of convolutions by numbers, in place: auto_LiRPA knows no words.

    Raises:
        UnsupportedNetwork: naming a layer that pads one side more than the other.
    """
    for name, layer in model.named_modules():
        if isinstance(getattr(layer, "padding", None), str):
            layer.padding = padding_in_numbers(name, layer)
    return model


def convolution_mode(model: nn.Module, shape: Sequence[int]) -> str:
    """Return "patches", which is fast, where it is right: for square images and layers, without groups and dilation.

    Elsewhere auto_LiRPA 0.3 reads the wrong memory: CROWN fails or, worse, returns what is no bound (found by
    campaigns/soundness.py).
    """
    settings = [
        getattr(layer, name, 1)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d)
        for name in ("kernel_size", "stride", "padding")
    ]
    oblong = any(not isinstance(one, int) and len(set(one)) > 1 for one in settings)
    special = any(
        layer.groups > 1 or set(layer.dilation) != {1} for layer in model.modules() if isinstance(layer, nn.Conv2d)
    )
    square = len(shape) == 4 and shape[2] == shape[3]
    return "patches" if square and not oblong and not special else "matrix"


def with_all_parameters(model: nn.Module) -> nn.Module:
    """Give linear layers without bias one of 0, and BatchNorm without weights those of the identity, in place.

    auto_LiRPA 0.3 knows neither a BatchNorm without weights nor the specification merged into a linear layer
    without bias.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.bias is None:
            layer.bias = _constant(layer.weight.new_zeros(layer.out_features))
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is None:
            layer.weight = _constant(torch.ones_like(layer.running_mean))
            layer.bias = _constant(torch.zeros_like(layer.running_mean))
    return model


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
