"""Small networks, their reduction over a box, and random splits, for the tests of branch-and-bound."""

from __future__ import annotations

import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import LayerGraph, without_max_pool
from expressive_losses.bounds.reduction import Reduced, Tightening, reduce, stack
from expressive_losses.types import Box, specification
from expressive_losses.verify import Problem

CROWN = Tightening()


def mlp(seed: int, inputs: int = 2, width: int = 8, dtype=torch.float32) -> BoundedNetwork:
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
    for layer in layers[::2]:
        layer.weight.data.mul_(1.5)
    return BoundedNetwork(nn.Sequential(*layers), (inputs,), 3, (0.4,), (0.3,)).to(dtype).eval()


def pooled(seed: int) -> BoundedNetwork:
    """Max pooling and a residual sum, on four inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 3, 2, padding=1), nn.MaxPool2d(2, 1)
            self.mix, self.last = nn.Conv2d(3, 3, 1), nn.Linear(12, 3)

        def forward(self, x):
            h = self.pool(self.conv(x))
            return self.last((h + self.mix(h).relu()).relu().flatten(1))

    torch.manual_seed(seed)
    return BoundedNetwork(Model(), (1, 2, 2), 3).eval()


def problem_for(network: BoundedNetwork, eps: float, count: int = 8, **fields) -> Problem:
    """Random images, labelled as the network sees them."""
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(5)).to(network.mean)
    with torch.no_grad():
        return Problem.of(network, x, network(x).argmax(1), eps, **fields)


def grid(dimensions: int, points: int) -> torch.Tensor:
    """Points of [-1, 1]^D, corners included."""
    line = torch.linspace(-1, 1, points)
    return torch.cartesian_prod(*[line] * dimensions).view(-1, dimensions)


@torch.no_grad()
def reduced(network, box: Box, labels, tightening: Tightening = CROWN) -> tuple[LayerGraph, Reduced]:
    graph = without_max_pool(extract(network.model, network.shape, network.mean))
    normalised = Box(network.normalize(box.lower), network.normalize(box.upper))
    matrices = specification(labels, network.classes, network.mean.dtype)
    rows = range(len(labels))
    return graph, stack([reduce(graph, normalised[r : r + 1], matrices[r], tightening) for r in rows])


def pre_activations(graph: LayerGraph, one: Reduced, x: torch.Tensor) -> torch.Tensor:
    """z of the unstable neurons at normalised inputs, by a plain forward pass through the layers; (N, U)."""
    values = graph.values(x)
    sources = [values[graph.layers[at].inputs[0]].flatten(1) for at in graph.relus]
    columns = [sources[block][:, index] for block, index in one.places[0].tolist()]
    return torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0)


def random_splits(count: int, one: Reduced, seed: int) -> torch.Tensor:
    """Some neurons split at random, more and more from sub-problem to sub-problem; (1, N, U) int8."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, count, one.neurons.count)
    chance = torch.linspace(0, 1, count).view(1, -1, 1)
    split = torch.rand(size, generator=generator) < chance
    sign = torch.where(torch.rand(size, generator=generator) < 0.5, 1, -1)
    return torch.where(split, sign, 0).to(torch.int8)
