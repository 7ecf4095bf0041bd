"""Residual networks. Sums are written ``+`` so that a tracer sees an Add."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from expressive_losses.errors import UserError
from expressive_losses.models.base import Model, Shape
from expressive_losses.models.layers import Conv, conv_size
from expressive_losses.registry import MODELS


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), with 3x3 convolutions.

    The shortcut is the identity, or BN(1x1 convolution) where the shape changes.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H/stride), ceil(W/stride))."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class WideBlock(nn.Module):
    """conv(relu(BN(conv(h)))) + shortcut with h = relu(BN(x)); the shortcut is x, or a 1x1 convolution of h.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks" (pre-activation blocks), without dropout.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H/stride), ceil(W/stride))."""
        h = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(h))))
        return residual + (x if self.shortcut is None else self.shortcut(h))


@MODELS.register("resnet")
class ResNet(Model):
    """Small residual network: a convolution, stages of basic blocks (conv, BN, ReLU, add), two linear layers.

    Stage i has width * 2^i channels; every stage but the first halves the image. It ends as CNN7 does, in a
    hidden linear layer with BatchNorm, not in average pooling.

    Args:
        width: channels of the first stage.
        blocks: number of blocks of each stage.
        hidden: units of the hidden linear layer.
    """

    width: PositiveInt = 16
    blocks: tuple[PositiveInt, ...] = (1, 1, 1)
    hidden: PositiveInt = 256

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        outputs = self.width
        layers = [nn.Conv2d(shape[0], outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
        for stage, count in enumerate(self.blocks):
            outputs = self.width * 2**stage
            for block in range(count):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        height, width = _side(self.name, shape, len(self.blocks))
        layers += [
            nn.Flatten(),
            nn.Linear(inputs * height * width, self.hidden),
            nn.BatchNorm1d(self.hidden),
            nn.ReLU(),
        ]
        return nn.Sequential(*layers, nn.Linear(self.hidden, classes))


@MODELS.register("wide_resnet")
class WideResNet(Model):
    """WideResNet-d-k: pre-activation blocks in three stages, average pooling, one linear layer.

    The stages have 16k, 32k and 64k channels; the second and the third halve the image.

    Args:
        depth: d = 6n + 4, with n blocks a stage.
        widen: k.

    Source: Zagoruyko and Komodakis; WideResNet-10-10 (8M parameters) is the ImageNet network of Gowal et al.,
        table 2.
    """

    depth: PositiveInt = 10
    widen: PositiveInt = 10

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`.

        Raises:
            UserError: when the depth is not 6n + 4 or the image is too small.
        """
        count, rest = divmod(self.depth - 4, 6)
        if rest or count < 1:
            raise UserError(f"model '{self.name}': depth must be 6n + 4 (10, 16, 22, ...), got {self.depth}")
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)]
        inputs = 16
        for stage in range(3):
            for block in range(count):
                outputs = 16 * self.widen * 2**stage
                layers.append(WideBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        pool = nn.AvgPool2d(_side(self.name, shape, stages=3))
        return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), pool, nn.Flatten(), nn.Linear(inputs, classes))


def _side(name: str, shape: Shape, stages: int) -> tuple[int, int]:
    """Return the height and width after the strides of all stages but the first."""
    height, width = shape[1:]
    for _ in range(stages - 1):
        if min(height, width) < 2:
            raise UserError(f"model '{name}': images of shape {tuple(shape)} are too small for {stages} stages")
        height, width = (conv_size(name, shape, size, Conv(1, 3, 2, 1)) for size in (height, width))
    return height, width
