"""The networks of the expressive-losses work and their small relatives: conv, BatchNorm, ReLU throughout."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import nn

from expressive_losses.models.base import Model, Shape
from expressive_losses.models.layers import Conv, convnet
from expressive_losses.registry import MODELS


@MODELS.register("cnn7")
class Cnn7(Model):
    """CNN7: five 3x3 convolutions, two linear layers, BatchNorm; the network of the published figures.

    Channels w, w, 2w (stride 2), 2w, 2w; for 64x64 images the fifth convolution has stride 2 too.
    The narrow and wide forms of the literature are ``width`` 32 and 128.

    Args:
        width: w, channels of the first convolution.
        hidden: units of the hidden linear layer.

    Source: paper "Expressive Losses", table 4; the stride for 64x64 images from its published code.
    """

    width: PositiveInt = 64
    hidden: PositiveInt = 512

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        w = self.width
        last = 2 if max(shape[1:]) >= 64 else 1
        convs = [Conv(w), Conv(w), Conv(2 * w, stride=2), Conv(2 * w), Conv(2 * w, stride=last)]
        return convnet(self.name, shape, classes, convs, [self.hidden], batch_norm=True)


@MODELS.register("cnn5")
class Cnn5(Model):
    """CNN5: CNN7 without its second and last convolution: three convolutions, two linear layers, BatchNorm.

    Not a network of the papers: this package's own middle size.

    Args:
        width: w; the channels are w, 2w (stride 2), 2w.
        hidden: units of the hidden linear layer.
    """

    width: PositiveInt = 64
    hidden: PositiveInt = 512

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        w = self.width
        return convnet(
            self.name,
            shape,
            classes,
            [Conv(w), Conv(2 * w, stride=2), Conv(2 * w)],
            [self.hidden],
            batch_norm=True,
        )


@MODELS.register("cnn_small")
class CnnSmall(Model):
    """Two 4x4 stride-2 convolutions, two linear layers, BatchNorm: trains on MNIST on a CPU.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden linear layer.
    """

    width: PositiveInt = 16
    hidden: PositiveInt = 100

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        convs = [Conv(self.width, 4, 2), Conv(2 * self.width, 4, 2)]
        return convnet(self.name, shape, classes, convs, [self.hidden], batch_norm=True)


@MODELS.register("cnn_tiny")
class CnnTiny(Model):
    """Two 3x3 convolutions (the second of stride 2), two linear layers, BatchNorm: for 8x8 images.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden linear layer.
    """

    width: PositiveInt = 16
    hidden: PositiveInt = 100

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        convs = [Conv(self.width), Conv(2 * self.width, stride=2)]
        return convnet(self.name, shape, classes, convs, [self.hidden], batch_norm=True)
