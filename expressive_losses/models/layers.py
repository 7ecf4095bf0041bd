"""The plain convolutional network that most families here are instances of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from expressive_losses.errors import UserError


class Conv(NamedTuple):
    """One convolution: ``channels`` filters of size ``kernel`` x ``kernel``."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


def convnet(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    convs: Sequence[Conv] = (),
    hidden: Sequence[int] = (),
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return (conv, [BN,] ReLU)* flatten (linear, [BN,] ReLU)* linear.

    Args:
        name: of the model, for messages.
        shape: (C, H, W) of one image.
        classes: outputs of the last linear layer.
        convs: the convolutions in order.
        hidden: widths of the hidden linear layers.
        batch_norm: put BatchNorm between each affine layer and its ReLU.

    Raises:
        UserError: when an image is too small for a convolution.
    """
    layers: list[nn.Module] = []
    channels, height, width = shape
    for conv in convs:
        layers.append(nn.Conv2d(channels, *conv))
        layers += _activation(nn.BatchNorm2d(conv.channels) if batch_norm else None)
        height, width = conv_size(name, shape, height, conv), conv_size(name, shape, width, conv)
        channels = conv.channels
    layers.append(nn.Flatten())
    features = channels * height * width
    for units in hidden:
        layers.append(nn.Linear(features, units))
        layers += _activation(nn.BatchNorm1d(units) if batch_norm else None)
        features = units
    layers.append(nn.Linear(features, classes))
    return nn.Sequential(*layers)


def _activation(norm: nn.Module | None) -> list[nn.Module]:
    return [nn.ReLU()] if norm is None else [norm, nn.ReLU()]


def conv_size(name: str, shape: tuple[int, int, int], size: int, conv: Conv) -> int:
    """Return the side of the convolution's output for an input of side ``size``.

    Raises:
        UserError: when the kernel does not fit.
    """
    out = (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
    if out < 1:
        raise UserError(
            f"model '{name}': images of shape {tuple(shape)} are too small for its convolutions; choose another model"
        )
    return out
