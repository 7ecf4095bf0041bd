"""Interval bounds of plain chains without auto_LiRPA's bookkeeping: the fast path of training.

A chain is a Sequential of convolution or linear layers, each followed by BatchNorm, ReLU, both or neither, and of
flattening. Its IBP is short: fold BatchNorm into the weights, propagate centre and radius. The bounds equal
BoundedModule's up to rounding (a test compares them on every registered model); everything else goes to BoundedModule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from expressive_losses.bounds.statistics import BatchStatistics
from expressive_losses.types import Bounds, Box, margins_of, other_classes

#: Weight differences made at once, in numbers (4 MiB of float32); up to four times that are kept for the backward pass.
_MOST_DIFFERENCES = 2**20
_RECOMPUTED = {"use_reentrant": False, "preserve_rng_state": False}
#: The affine layers of a chain, and the BatchNorm over their outputs. Exact types: a subclass may compute anything.
_NORMS = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


@dataclass
class Stage:
    """One affine layer with what surrounds it.

    Attributes:
        affine: convolution or linear.
        flatten: whether its input is flattened first.
        norm: the BatchNorm layer after it, by name, if any.
        relu: whether a ReLU follows.
    """

    affine: nn.Module
    flatten: bool = False
    norm: tuple[str, _BatchNorm] | None = None
    relu: bool = False

    def folded(self, statistics: BatchStatistics | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the affine layer followed by its BatchNorm, with gradient."""
        weight, bias = self.affine.weight, self.affine.bias
        if self.norm is None:
            return weight, bias
        name, norm = self.norm
        mean, variance = (statistics or {}).get(name, (norm.running_mean, norm.running_var))
        scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = (-mean if bias is None else bias - mean) * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the affine map with other weights."""
        if isinstance(self.affine, nn.Linear):
            return F.linear(x, weight, bias)
        return self.affine._conv_forward(x, weight, bias)


def chain_of(model: nn.Module) -> list[Stage] | None:
    """Return the stages of a chain that ends in a linear layer, or None when the module is something else."""
    if type(model) is not nn.Sequential or any(_altered(layer) for layer in model.modules()):
        return None
    stages: list[Stage] = []
    flatten = False
    for name, layer in model.named_children():
        last = stages[-1] if stages else None
        if type(layer) in _NORMS and getattr(layer, "padding_mode", "zeros") == "zeros":
            stages.append(Stage(layer, flatten))
            flatten = False
        elif type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            flatten = True
        elif _is_norm_of(last, layer) and not (last.norm or last.relu or flatten):
            last.norm = (name, layer)
        elif type(layer) is nn.ReLU and last and not (last.relu or flatten):
            last.relu = True
        else:
            return None
    ends_linear = stages and isinstance(stages[-1].affine, nn.Linear) and not (stages[-1].norm or stages[-1].relu)
    return stages if ends_linear and not flatten else None


def _is_norm_of(stage: Stage | None, layer: nn.Module) -> bool:
    """Return whether a layer is BatchNorm, with running statistics, over what this stage puts out."""
    return stage is not None and type(layer) is _NORMS[type(stage.affine)] and layer.track_running_stats


def _altered(layer: nn.Module) -> bool:
    """Return whether hooks change what a layer computes: its type does not say then what it does."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def interval_bounds(
    stages: list[Stage], box: Box, labels: Tensor, statistics: BatchStatistics | None, relu_shrink: float = 1.0
) -> Bounds:
    """Bound f_y - f_j by interval arithmetic, the last linear layer merged with the differences.

    With a layer W, b and a box of centre c and radius r: c <- W c + b, r <- |W| r; a ReLU acts on c - r and c + r.

    Args:
        stages: from :func:`chain_of`.
        box: normalised inputs, (B, *shape).
        labels: (B,) int64.
        statistics: of BatchNorm, by name; ``None``: the running ones.
        relu_shrink: factor on the radius of every ReLU's input (SABR). Below 1 it is NO bound: for training only.

    Source: paper "On the Effectiveness of Interval Bound Propagation", equations (6) and (7); elision: its section 3.
    """
    center, radius, relu_inputs = box.center, box.half_width, []
    for stage in stages[:-1]:
        center, radius = _flattened(stage, center, radius)
        weight, bias = stage.folded(statistics)
        center, radius = stage.apply(center, weight, bias), stage.apply(radius, weight.abs(), None)
        if stage.relu:
            lower, upper = center - radius, center + radius
            relu_inputs.append(Box(lower, upper))
            if relu_shrink < 1:
                lower, upper = center - relu_shrink * radius, center + relu_shrink * radius
            lower, upper = F.relu(lower), F.relu(upper)
            center, radius = (lower + upper) / 2, (upper - lower) / 2
    center, radius = _flattened(stages[-1], center, radius)
    return Bounds(_margins(stages[-1].affine, center, radius, labels), box, tuple(relu_inputs))


def _flattened(stage: Stage, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.flatten(1) if stage.flatten else x for x in tensors)


def _margins(last: nn.Linear, center: Tensor, radius: Tensor, labels: Tensor) -> Tensor:
    """Return min over the box of (W_y - W_j) x + b_y - b_j, j != y: its value at the centre, minus |W_y - W_j| r.

    With many classes the weight differences, (B, K-1, in), are the largest tensor of training. They are then made for a
    few samples at a time, and made again in the backward pass: the same values in a fraction of the memory.
    """
    others = other_classes(labels, last.out_features)
    samples = max(1, _MOST_DIFFERENCES // (others.shape[1] * last.in_features))
    if len(labels) <= 4 * samples:
        width = _spread(last.weight, radius, labels, others)
    else:
        parts = zip(*(tensor.split(samples) for tensor in (radius, labels, others)), strict=True)
        width = torch.cat([checkpoint(_spread, last.weight, *part, **_RECOMPUTED) for part in parts])
    return margins_of(F.linear(center, last.weight, last.bias), labels) - width


def _spread(weight: Tensor, radius: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return |W_y - W_j| r, (B, K-1).

    Not weight[labels]: the backward of indexing adds up in any order on several threads, so that a run could not be
    repeated bit for bit.
    """
    rows = F.embedding(labels, weight).unsqueeze(1) - F.embedding(others, weight)
    return (rows.abs() @ radius.unsqueeze(2)).squeeze(2)
