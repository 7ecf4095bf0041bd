"""Fully connected networks."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import nn

from expressive_losses.models.base import Model, Shape
from expressive_losses.models.layers import convnet
from expressive_losses.registry import MODELS


@MODELS.register("mlp")
class Mlp(Model):
    """Multi-layer perceptron: flatten, then linear layers with ReLU between them.

    Args:
        hidden: units of each hidden layer.
        batch_norm: BatchNorm before each ReLU.
    """

    hidden: tuple[PositiveInt, ...] = (256, 256)
    batch_norm: bool = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        return convnet(self.name, shape, classes, hidden=self.hidden, batch_norm=self.batch_norm)
