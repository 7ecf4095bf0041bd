"""Interval bounds of plain chains without auto_LiRPA's bookkeeping: the fast path of training.

The IBP of a chain is short: merge BatchNorm into the affine layers, propagate centre and radius. The bounds equal
BoundedModule's up to rounding (a test compares them on every registered model); everything else goes to BoundedModule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expressive_losses.bounds.chain import Stage
from expressive_losses.bounds.kernels import interval_relu
from expressive_losses.bounds.statistics import BatchStatistics
from expressive_losses.types import Bounds, Box, margins_of, other_classes

#: Weight differences made at once, in numbers; up to four times that are kept for the backward pass. On a CPU 4 MiB of
#: float32, elsewhere 256: there, many small pieces take longer than they save.
_MOST_DIFFERENCES = {"cpu": 2**20}
_MOST_ELSEWHERE = 2**26
_RECOMPUTED = {"use_reentrant": False, "preserve_rng_state": False}


def interval_bounds(
    stages: list[Stage],
    box: Box,
    labels: Tensor,
    statistics: BatchStatistics | None,
    relu_shrink: float = 1.0,
    hidden: bool = True,
) -> Bounds:
    """Bound f_y - f_j by interval arithmetic, the last linear layer merged with the differences.

    With a layer W, b and a box of centre c and radius r: c <- W c + b, r <- |W| r; a ReLU acts on c - r and c + r.

    Args:
        stages: from :func:`expressive_losses.bounds.chain.chain_of`.
        box: normalised inputs, (B, *shape).
        labels: (B,) int64.
        statistics: of BatchNorm, by name; ``None``: the running ones.
        relu_shrink: factor on the upper bound of every unstable ReLU's input (SABR). Below 1 it is NO bound: for
            training only.
        hidden: whether to return the bounds on the ReLUs' inputs; in training they are held in memory for it.

    Source: paper "On the Effectiveness of Interval Bound Propagation", equations (6) and (7); elision: its section 3;
        relu_shrink: "Expressive Losses", appendix E.2.
    """
    center, radius, factor, relu_inputs = box.center, box.half_width, 1.0, []
    for stage in stages[:-1]:
        affine = stage.merged(statistics, factor)
        center, radius, factor = affine(stage.enter(center)), affine.of_radius(stage.enter(radius)), 1.0
        if stage.relu:
            center, radius, inputs = interval_relu(center, radius, relu_shrink, hidden)
            factor = 0.5
            relu_inputs += [inputs] if hidden else []
    center, radius = (factor * stages[-1].enter(x) for x in (center, radius))
    lower, upper = _margins(stages[-1].affine, center, radius, labels)
    return Bounds(lower, box, tuple(relu_inputs), upper)


def _margins(last: nn.Linear, center: Tensor, radius: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range over the box of (W_y - W_j) x + b_y - b_j, j != y: the value at the centre, -+ |W_y - W_j| r.

    With many classes the weight differences, (B, K-1, in), are the largest tensor of training. They are then made for a
    few samples at a time, and made again in the backward pass: the same values in a fraction of the memory.
    """
    others = other_classes(labels, last.out_features)
    most = _MOST_DIFFERENCES.get(labels.device.type, _MOST_ELSEWHERE)
    samples = max(1, most // (others.shape[1] * last.in_features))
    if len(labels) <= 4 * samples:
        width = _spread(last.weight, radius, labels, others)
    else:
        parts = zip(*(tensor.split(samples) for tensor in (radius, labels, others)), strict=True)
        width = torch.cat([checkpoint(_spread, last.weight, *part, **_RECOMPUTED) for part in parts])
    middle = margins_of(F.linear(center, last.weight, last.bias), labels)
    return middle - width, middle + width


def _spread(weight: Tensor, radius: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return |W_y - W_j| r, (B, K-1).

    Not weight[labels]: the backward of indexing adds up in any order on several threads, so that a run could not be
    repeated bit for bit.
    """
    rows = F.embedding(labels, weight).unsqueeze(1) - F.embedding(others, weight)
    return (rows.abs() @ radius.unsqueeze(2)).squeeze(2)
