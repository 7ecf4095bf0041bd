"""CROWN-IBP of plain chains without auto_LiRPA's bookkeeping: one linear bound from the margins to the input.

Interval bounds hold every ReLU's input; the lines that bound the ReLUs between those turn the margins into a linear
function of the input. Equal to BoundedModule's up to rounding (a test compares values and gradients on every registered
model); everything else than a chain goes to BoundedModule.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expressive_losses.bounds.chain import Stage, laid_out
from expressive_losses.bounds.kernels import conv_transpose2d_of_few_channels, has_few_columns
from expressive_losses.bounds.products import linear
from expressive_losses.bounds.statistics import BatchStatistics
from expressive_losses.types import Box, other_classes

#: Coefficients of one layer at once, in numbers; above, the margins are bounded in parts. On a CPU 16 MiB of float32:
#: more would not fit into its caches, and be slower. Elsewhere 1 GiB.
MOST_COEFFICIENTS = {"cpu": 2**22}
MOST_ELSEWHERE = 2**28
#: What parts may keep for the backward pass, in numbers: 256 MiB of float32. Above, it bounds every part once more.
MOST_KEPT = 2**26
_TRANSPOSED = {nn.Conv1d: F.conv_transpose1d, nn.Conv2d: F.conv_transpose2d, nn.Conv3d: F.conv_transpose3d}


def crown_ibp_margins(
    stages: Sequence[Stage],
    box: Box,
    relu_inputs: Sequence[Box],
    labels: Tensor,
    statistics: BatchStatistics | None,
    most: int | None = None,
    kept: int = MOST_KEPT,
) -> Tensor:
    """Return lower bounds on f_y - f_j over the box, (B, K-1), by one backward pass from the margins.

    A margin is a linear function with coefficients A of a layer's output. A ReLU with input in [l, u], l < 0 < u, lies
    below the line u/(u-l) (z - l) and above z or 0, whichever is nearer (z where u > -l): coefficients below 0 take the
    upper line, others the lower. At the input the minimum over the box is A c - |A| r + constant.

    Args:
        stages: from :func:`expressive_losses.bounds.chain.chain_of`; see :func:`transposable`.
        box: normalised inputs, (B, *shape).
        relu_inputs: sound bounds on every ReLU's input, in order.
        labels: (B,) int64.
        statistics: of BatchNorm, by name; ``None``: the running ones.
        most: coefficients of one layer at once; ``None`` chooses by device.
        kept: numbers that parts may keep for the backward pass.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", section 3.
    """
    layers = _layers(stages, box, relu_inputs, statistics)
    last, weight = stages[-1].affine, _last_weight(stages, layers)
    others = other_classes(labels, last.out_features)
    most = most or MOST_COEFFICIENTS.get(box.lower.device.type, MOST_ELSEWHERE)
    sizes = [last.in_features, *(prod(layer.shape) for layer in layers)]
    size = max(1, most // (len(labels) * max(sizes)))

    def part(others: Tensor) -> Tensor:
        return _backward(layers, box, *_differences(weight, last.bias, labels, others))

    def part_twice(others: Tensor) -> Tensor:
        return checkpoint(part, others, use_reentrant=False, preserve_rng_state=False)

    if size >= others.shape[1]:
        return part(others)
    # a ReLU and the layer before it keep the coefficients that they took
    bounded = part if 2 * others.numel() * sum(sizes) <= kept else part_twice
    return torch.cat([bounded(some) for some in others.split(size, dim=1)], dim=1)


def crown_ibp_rows(
    stages: Sequence[Stage],
    box: Box,
    relu_inputs: Sequence[Box],
    rows: Tensor,
    statistics: BatchStatistics | None,
) -> Tensor:
    """Return lower bounds on C f over the box, (B, M), by one backward pass as in :func:`crown_ibp_margins`.

    Args:
        stages, box, relu_inputs, statistics: see :func:`crown_ibp_margins`.
        rows: C, (B, M, K), a few for each image.
    """
    bias, layers = stages[-1].affine.bias, _layers(stages, box, relu_inputs, statistics)
    constant = torch.zeros_like(rows[:, :, 0]) if bias is None else rows @ bias
    return _backward(layers, box, rows @ _last_weight(stages, layers), constant)


def transposable(stages: Sequence[Stage]) -> bool:
    """Return whether every convolution states its padding in numbers, which its transpose needs."""
    return not any(isinstance(getattr(stage.affine, "padding", 0), str) for stage in stages)


class _Layer:
    """One hidden affine layer with folded BatchNorm, the shapes around it, and the lines of the ReLU after it."""

    def __init__(self, stage: Stage, shape: torch.Size, before: _Layer | None, statistics: BatchStatistics | None):
        self.affine = stage.affine
        self.weight, self.bias = stage.folded(statistics)
        self.shape = shape
        if stage.flatten:
            self.shape = torch.Size([prod(shape)])
            self.weight = self.weight if before is None else before.in_memory_order(self.weight)
        self.output = self._output(self.shape)
        self.lines: tuple[Tensor, Tensor, Tensor] | None = None

    def _output(self, shape: torch.Size) -> torch.Size:
        if isinstance(self.affine, nn.Linear):
            return torch.Size([*shape[:-1], self.affine.out_features])
        layer = self.affine
        sizes = zip(shape[1:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        return torch.Size([layer.out_channels, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)])

    def in_memory_order(self, columns: Tensor) -> Tensor:
        """Return columns (..., n) for this layer's flattened output in the order in which it lies in memory.

        Images have their channels last, and so have the lines of their ReLUs. Coefficients in another order would make
        every product with those tens of times as slow.
        """
        if not isinstance(self.affine, nn.Conv2d):
            return columns
        return columns.unflatten(-1, self.output).movedim(-3, -1).flatten(-3)

    def shaped(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of this layer's output, flat (N, n) in memory order or not flat, as (N, *output)."""
        if not isinstance(self.affine, nn.Conv2d):
            return coefficients.reshape(-1, *self.output)
        if coefficients.ndim > 2:
            return laid_out(coefficients)
        channels, height, width = self.output
        return coefficients.unflatten(1, (height, width, channels)).movedim(3, 1)

    def transpose(self, coefficients: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the coefficients of the layer's input, (N, *shape), from those of its output, and the bias's part."""
        layer, constant = self.affine, 0.0
        if isinstance(layer, nn.Linear):
            if self.bias is not None:  # images may stay images: the layer then acts on their rows
                constant = (coefficients @ self.bias).reshape(len(coefficients), -1).sum(1)
            return linear(coefficients, self.weight.t()), constant
        if self.bias is not None:
            constant = coefficients.flatten(2).sum(2) @ self.bias
        transposed = _TRANSPOSED[type(layer)]
        if has_few_columns(layer, coefficients):
            return conv_transpose2d_of_few_channels(coefficients, self.weight, self.shape[1:], layer), constant
        rest = self._output_padding()
        geometry = (layer.stride, layer.padding, rest, layer.groups, layer.dilation)
        return transposed(coefficients, self.weight, None, *geometry), constant

    def _output_padding(self) -> list[int]:
        """Return how many of the last rows and columns of the input no stride reaches."""
        layer = self.affine
        sizes = zip(
            self.shape[1:], self.output[1:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
        return [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in sizes]


def _layers(
    stages: Sequence[Stage], box: Box, relu_inputs: Sequence[Box], statistics: BatchStatistics | None
) -> list[_Layer]:
    layers, shape, bounds = [], box.lower.shape[1:], iter(relu_inputs)
    for stage in stages[:-1]:
        layer = _Layer(stage, shape, layers[-1] if layers else None, statistics)
        shape = layer.output
        if stage.relu:
            layer.lines = _lines(next(bounds))
        layers.append(layer)
    return layers


def _last_weight(stages: Sequence[Stage], layers: Sequence[_Layer]) -> Tensor:
    """Return the weight of the last layer, (K, in), its columns in the order of :meth:`_Layer.in_memory_order`."""
    weight = stages[-1].affine.weight
    return layers[-1].in_memory_order(weight) if stages[-1].flatten and layers else weight


def _lines(bounds: Box) -> tuple[Tensor, Tensor, Tensor]:
    """Return slope of the lower line, slope and intercept of the upper line of ReLUs, each of the bounds' shape.

    As in auto_LiRPA, whose adaptive slopes these are: u/(u-l) with l cut at 0 from above, u from below. Where u - l is
    below 1e-8 the slope, and with it its gradient, is limited, and the line lifted until it is above the ReLU at u too
    (auto_LiRPA's, without that, is up to 1e-8 below it); elsewhere -l slope = u (1 - slope).
    """
    lower, upper = bounds.lower.clamp(max=0), bounds.upper.clamp(min=0)
    slope = upper / (torch.maximum(upper, lower + 1e-8) - lower)
    return (slope > 0.5).to(slope.dtype), slope, torch.maximum(-lower * slope, upper - upper * slope)


def _differences(weight: Tensor, bias: Tensor | None, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return W_y - W_j, (B, M, in), and b_y - b_j, (B, M), of the last layer."""
    # F.embedding, not weight[labels]: see interval._spread
    coefficients = F.embedding(labels, weight).unsqueeze(1) - F.embedding(others, weight)
    if bias is None:
        return coefficients, torch.zeros_like(coefficients[:, :, 0])
    return coefficients, bias.gather(0, labels).unsqueeze(1) - bias.expand(len(labels), -1).gather(1, others)


def _backward(layers: Sequence[_Layer], box: Box, coefficients: Tensor, constant: Tensor) -> Tensor:
    """Return the least value over the box, (B, M), of linear functions of the last layer's input.

    Args:
        coefficients: (B, M, in).
        constant: (B, M).
    """
    batch, rows = constant.shape
    coefficients, constant = coefficients.flatten(0, 1), constant.flatten()
    for layer in reversed(layers):
        coefficients = layer.shaped(coefficients)
        if layer.lines is not None:
            coefficients, added = _ThroughReLU.apply(coefficients.unflatten(0, (batch, rows)), *layer.lines)
            coefficients, constant = coefficients.flatten(0, 1), constant + added.flatten()
        coefficients, added = layer.transpose(coefficients)
        constant = constant + added
    coefficients = coefficients.reshape(batch, rows, -1)
    center, radius = (x.flatten(1).unsqueeze(2) for x in (box.center, box.half_width))
    return (coefficients @ center - coefficients.abs() @ radius).squeeze(2) + constant.view(batch, rows)


class _ThroughReLU(torch.autograd.Function):
    """Coefficients (B, S, *n) of a ReLU's output to those of its input, and the constants (B, S) of the lines.

    Its own gradient, because autograd would keep five tensors of the coefficients' size where one is enough. The slope
    of the lower line is 0 or 1: it has no gradient.
    """

    @staticmethod
    def forward(ctx, coefficients: Tensor, low: Tensor, high: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(coefficients, low, high, intercept)
        negative = coefficients.clamp(max=0)
        terms, lines = negative, intercept
        if coefficients.ndim == 5:  # images have their channels last in memory
            terms, lines = terms.movedim(2, -1), lines.movedim(1, -1)
        constant = (terms.flatten(2) @ lines.flatten(1).unsqueeze(2)).squeeze(2)
        return torch.addcmul(coefficients * low.unsqueeze(1), negative, (high - low).unsqueeze(1)), constant

    @staticmethod
    def backward(ctx, gradient: Tensor, of_constant: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, low, high, intercept = ctx.saved_tensors
        negative = coefficients.clamp(max=0)
        of_constant = of_constant.view(*of_constant.shape, *[1] * (coefficients.ndim - 2))
        of_intercept = (negative * of_constant).sum(1)
        of_high = (negative * gradient).sum(1)
        # where coefficients are negative; sums and products, because torch.where is not vectorised on every processor
        further = torch.addcmul(gradient * (high - low).unsqueeze(1), of_constant, intercept.unsqueeze(1))
        of_coefficients = torch.addcmul(gradient * low.unsqueeze(1), negative.sign_(), further, value=-1)
        return of_coefficients, None, of_high, of_intercept
