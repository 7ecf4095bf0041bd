"""Which neuron to split: scores from the relaxation, and strong branching among the best of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expressive_losses.bounds.beta_crown import (
    Bounded,
    Dual,
    Forms,
    Neurons,
    Relaxation,
    lower_bound,
    relax,
    relaxation_gap,
)

Score = Literal["upb", "babsr", "gap"]


def score(name: Score, neurons: Neurons, relaxation: Relaxation, found: Bounded) -> Tensor:
    """Return how much a split of each neuron promises, (I, N, U); -inf where a neuron cannot be split.

    With A the coefficient of the lower bound on y = relu(z), and l < 0 < u:

    * "upb": max(-A, 0) * (-l) u, the area of the relaxation in place of its offset (-l) u / (u - l).
    * "babsr": abs(max(A s b, A (s - 1) b) - max(-A, 0) (-l) u / (u - l)), s = u / (u - l), b the bias of z.
    * "gap": what the relaxation of the neuron costs at the bound's minimiser.

    A neuron whose score is 0 may still have to be split: abs(A) times the area, made tiny, breaks such ties.

    Source: paper "Expressive Losses", appendix D (UPB with the area; UPB itself is equation (7) of De Palma et al.,
        "IBP Regularization for Verified Adversarial Robustness via Branch-and-Bound"); Bunel et al., "Branch and
        Bound for Piecewise Linear Neural Network Verification", section 5.
    """
    a = found.coefficients
    lower, upper = neurons.lower.unsqueeze(1), neurons.upper.unsqueeze(1)
    area = -lower * upper
    if name == "upb":
        value = (-a).clamp_min(0) * area
    elif name == "gap":
        value = relaxation_gap(neurons, relaxation, found)
    else:
        bias = neurons.bias.unsqueeze(1)
        kept, cut = a * relaxation.up * bias, a * (relaxation.up - 1) * bias
        value = (torch.maximum(kept, cut) - (-a).clamp_min(0) * relaxation.shift).abs()
    value = value + 1e-7 * (a.abs() + 1e-7) * area
    # What overflows may be split all the same: -inf is for what has been, and for stable neurons.
    most = torch.finfo(value.dtype).max
    return torch.where(relaxation.free, value.nan_to_num(nan=most, posinf=most, neginf=-most), -torch.inf)


def choose(
    name: Score, candidates: int, neurons: Neurons, forms: Forms, sign: Tensor, found: Bounded, target: Tensor
) -> Tensor:
    """Return the neuron to split in each sub-problem, (I, N) int64; -1 where all are split.

    Args:
        name: of the score.
        candidates: 1 takes the neuron with the largest score. With more, that many are tried: both children are bounded
            in one pass with the parent's multipliers, and the neuron whose worse child is best wins (strong branching).
        neurons, forms, sign, found: the sub-problems and their bounds.
        target: bounds above it need no further improvement; (I, 1).

    Source: De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian Decomposition"
        (filtered smart branching).
    """
    if neurons.count == 0:
        return torch.full(found.lower.shape, -1, device=sign.device)
    relaxation = relax(neurons, sign)
    scores = score(name, neurons, relaxation, found)
    best, index = scores.topk(min(candidates, scores.shape[2]), dim=2)
    chosen = index[..., 0]
    if index.shape[2] > 1:
        gains = torch.stack(
            [_gain(neurons, forms, sign, found, index[..., k], target) for k in range(index.shape[2])], 2
        )
        gains = torch.where(torch.isfinite(best), gains, -torch.inf)
        chosen = index.gather(2, gains.argmax(2, keepdim=True)).squeeze(2)
    return torch.where(torch.isfinite(best[..., 0]), chosen, -1)


def _gain(neurons: Neurons, forms: Forms, sign: Tensor, found: Bounded, index: Tensor, target: Tensor) -> Tensor:
    bounds = []
    for side in (1, -1):
        child = sign.scatter(2, index.unsqueeze(2), side)
        one, _ = lower_bound(neurons, forms, relax(neurons, child), child.to(neurons.bias), found.dual)
        bounds.append(torch.maximum(one.lower, found.lower).clamp_max(target))
    worse, better = torch.minimum(*bounds), torch.maximum(*bounds)
    return worse + 0.1 * better


def children(sign: Tensor, dual: Dual, index: Tensor) -> tuple[Tensor, Dual]:
    """Return both children of each sub-problem, (I, 2 N, U): first all with z >= 0, then all with z <= 0.

    They start from the parent's alpha and beta; the new split's beta is 0.
    """
    at = index.unsqueeze(2)
    signs = torch.cat([sign.scatter(2, at, 1), sign.scatter(2, at, -1)], 1)
    beta = dual.beta.scatter(2, at, 0.0)
    return signs, Dual(dual.alpha.repeat(1, 2, 1), beta.repeat(1, 2, 1))
