"""Sub-problems of branch-and-bound: a bound must hold wherever the neurons have the signs that were split on."""

from __future__ import annotations

import torch
from torch import Tensor

from campaigns.networks import Subject
from campaigns.questions import Question
from expressive_losses.bounds.beta_crown import Dual, Neurons, optimise
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import without_max_pool
from expressive_losses.bounds.reduction import reduce
from expressive_losses.types import Box, margins_of, specification


def node_bounds(
    subject: Subject, box: Box, label: Tensor, seed: int, nodes: int = 12, points: int = 300
) -> tuple[Tensor, Question] | None:
    """Return beta-CROWN's bounds (N, 1) on random sub-problems of one box, and the lowest margins found in them.

    A sub-problem has the signs of one to three unstable neurons at a random point; it is compared with all points whose
    neurons have these signs. ``None`` when no neuron is unstable.

    Args:
        box, label: of one image, (1, *shape) and (1,).

    Raises:
        UnsupportedNetwork: when branch-and-bound cannot handle a layer.
    """
    network, generator = subject.network, torch.Generator().manual_seed(seed)
    graph = without_max_pool(extract(network.model, network.shape, network.mean))
    normalised = Box(network.normalize(box.lower), network.normalize(box.upper))
    reduced = reduce(graph, normalised, specification(label, network.classes, subject.dtype)[0])
    count = reduced.neurons.count
    if not count:
        return None
    u = 2 * torch.rand(points, box.lower.numel(), generator=generator, dtype=subject.dtype) - 1
    u[1::2] = u[1::2].sign()
    z = _inputs_of_neurons(reduced.neurons, u)
    sign = torch.zeros(nodes, count, dtype=subject.dtype)
    for node in range(nodes):
        split = torch.randperm(count, generator=generator)[: 1 + node % 3]
        sign[node, split] = z[node, split].sign()
    which = torch.randint(network.classes - 1, (1, nodes), generator=generator)
    found = optimise(
        reduced.neurons, reduced.outputs.pick(which), sign[None], Dual.start(reduced.neurons, nodes), 20
    ).lower[0]
    x = box.clamp(box.center + box.half_width * u.view(-1, *network.shape))
    logits = subject.logits(x)
    margins = margins_of(logits, label.expand(points))[:, which[0]].T  # (N, P)
    inside = (sign.unsqueeze(1) * z >= 0).all(2)
    lowest = torch.where(inside, margins, torch.inf).amin(1, keepdim=True)
    scale = (1 + logits.abs().max()).expand(nodes, 1)
    return found.unsqueeze(1), Question(box[[0] * nodes], label.expand(nodes), lowest, scale, points)


def _inputs_of_neurons(neurons: Neurons, u: Tensor) -> Tensor:
    """Return z = G u + L relu(z) + b, block after block; (P, U)."""
    z = u @ neurons.inputs[0].T + neurons.bias[0]
    for begin, end in neurons.spans():
        z[:, begin:end] += z[:, :begin].relu() @ neurons.earlier[0, begin:end, :begin].T
    return z
