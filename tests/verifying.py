"""Small networks, problems, and points of boxes for the tests of verifiers."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box
from expressive_losses.verify import (
    Cascade,
    Problem,
    Settings,
    build_stages,
)

BOUNDS = [name for name in VERIFIERS.names() if VERIFIERS[name].kind in ("bound", "complete")]


CPU = torch.device("cpu")


QUIET = Settings(progress=False)


def mlp(seed: int, inputs: int = 4) -> BoundedNetwork:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return BoundedNetwork(model, (inputs,), 3, mean=[0.4], std=[0.3]).eval()


def cnn(seed: int) -> BoundedNetwork:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)]
    model = nn.Sequential(*layers)
    model(torch.rand(64, 1, 3, 3))  # running statistics that are not the trivial ones
    return BoundedNetwork(model, (1, 3, 3), 3).eval()


def problem_for(network: BoundedNetwork, eps: float, count: int = 10, **fields) -> Problem:
    """Random images, labelled as the network sees them: nothing is misclassified."""
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(5)).to(network.mean)
    with torch.no_grad():
        return Problem.of(network, x, network(x).argmax(1), eps, **fields)


def run(stages, network, problem, **options) -> dict:
    stages = build_stages(stages) if isinstance(stages, str) else stages
    return {one.index: one for batch in Cascade(stages, **options)(network, problem) for one in batch}


def samples(box: Box, count: int = 300) -> list[torch.Tensor]:
    """Corners (all of them for few inputs, else random ones) and uniform points."""
    generator = torch.Generator().manual_seed(7)
    size = box.lower[0].numel()
    if size <= 6:
        picks = [torch.tensor(signs) for signs in itertools.product([False, True], repeat=size)]
    else:
        picks = [torch.rand(size, generator=generator) < 0.5 for _ in range(64)]
    shape = box.lower[0].shape
    corners = [torch.where(pick.view(shape), box.upper, box.lower) for pick in picks]
    return corners + [box.sample(generator) for _ in range(count)]
