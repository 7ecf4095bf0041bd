"""DM-small, DM-medium and DM-large: the networks of the IBP work, without BatchNorm."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from expressive_losses.models.base import Model, Shape
from expressive_losses.models.layers import Conv, convnet
from expressive_losses.registry import MODELS


class DeepMindNet(Model):
    """Base of the three: their convolutions and hidden widths.

    The table gives no padding. The counts under it (on CIFAR-10: 8.3K hidden units and 471K parameters, 47K
    and 1.2M, 230K and 17M) come out with no padding in small and medium, and with padding 1 in large.

    Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation", table 1.
    """

    convs: ClassVar[tuple[Conv, ...]]
    hidden: ClassVar[tuple[int, ...]]

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        return convnet(self.name, shape, classes, self.convs, self.hidden)


@MODELS.register("dm_small")
class DmSmall(DeepMindNet):
    """DM-small: two 4x4 convolutions (16, 32 filters) and a hidden layer of 100 units; no BatchNorm."""

    convs = (Conv(16, 4, 2, 0), Conv(32, 4, 1, 0))
    hidden = (100,)


@MODELS.register("dm_medium")
class DmMedium(DeepMindNet):
    """DM-medium: four convolutions (32, 32, 64, 64 filters), two hidden layers of 512 units; no BatchNorm."""

    convs = (Conv(32, 3, 1, 0), Conv(32, 4, 2, 0), Conv(64, 3, 1, 0), Conv(64, 4, 2, 0))
    hidden = (512, 512)


@MODELS.register("dm_large")
class DmLarge(DeepMindNet):
    """DM-large: the layers of CNN7 (64, 64, 128, 128, 128 filters, 512 units) without BatchNorm.

    NOTE: the original pads the strided layer on the far side only (TensorFlow's SAME); here on both, as ports
    to PyTorch do.
    """

    convs = (Conv(64), Conv(64), Conv(128, stride=2), Conv(128), Conv(128))
    hidden = (512,)
