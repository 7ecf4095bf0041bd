"""How tight bounds are, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.types import Bounds, Box

METHODS = ("ibp", "crown")


@dataclass(frozen=True)
class LayerBounds:
    """The inputs of one ReLU layer, on average over images.

    Attributes:
        neurons: how many.
        width: by method, mean upper - lower bound.
        unstable: by method, share of neurons whose sign is not known, in percent.
    """

    neurons: int
    width: dict[str, float]
    unstable: dict[str, float]


def bounds_by_layer(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float) -> list[LayerBounds]:
    """Return the layers in the order of the graph; empty if the network cannot be bounded.

    Args:
        network: in eval mode.
        images: (B, *shape), pixel units, one at a time: a few are enough.
        labels: (B,).
        eps: radius, pixel units.
    """
    found = {method: _relu_inputs(network, images, labels, eps, method) for method in METHODS}
    known = {method: boxes for method, boxes in found.items() if boxes}
    if not known or len({len(boxes) for boxes in known.values()}) > 1:
        return []
    return [_layer({method: boxes[at] for method, boxes in known.items()}) for at in range(len(found["ibp"]))]


def _layer(boxes: dict[str, Box]) -> LayerBounds:
    width = {method: (box.upper - box.lower).mean().item() for method, box in boxes.items()}
    unstable = {
        method: 100 * ((box.lower < 0) & (box.upper > 0)).double().mean().item() for method, box in boxes.items()
    }
    return LayerBounds(next(iter(boxes.values())).lower[0].numel(), width, unstable)


def _relu_inputs(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, method: str) -> list[Box]:
    try:
        with torch.no_grad():
            each = [_bounds(network, images[[at]], labels[[at]], eps, method).relu_inputs for at in range(len(images))]
    except (UserError, NotImplementedError, AssertionError, KeyError, ValueError):
        return []  # this method does not bound this network
    return [
        Box(torch.cat([box.lower for box in layer]), torch.cat([box.upper for box in layer]))
        for layer in zip(*each, strict=True)
    ]


def _bounds(network: BoundedNetwork, image: Tensor, label: Tensor, eps: float, method: str) -> Bounds:
    return network.bounds(Box.around(image, eps), label, method)
