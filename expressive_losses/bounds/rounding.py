"""How large rounding errors can be: a running error bound through the layers, from the magnitudes that are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import Affine, Layer, LayerGraph, Reshape, Select
from expressive_losses.errors import UserError, is_out_of_memory
from expressive_losses.types import Box

#: Values of all layers at once: a handful of tensors of so many numbers are held (16 MiB each in float32).
MOST_NUMBERS = 2**22


class Rounding:
    """The rounding errors of margins and of their bounds over a box.

    Over the box, interval bounds say how large each layer's inputs are: abs(x) <= m. A sum of products W x + b that
    errs by one unit roundoff of abs(W) m + abs(b) gives, with the errors of x,

        error of the layer = abs(W) (error of x + m) + abs(b),   in units of the roundoff,

    and 0 where a ReLU is 0 over the whole box, also if rounding errs as much as it can at worst: a bound at -1e-8 may
    stand for one above 0, in front of any weight. Large activations that cancel into small logits leave large errors,
    which the logits do not show. What linear relaxations (CROWN) add up goes through the same weights and is no larger.
    Products that underflow err by the smallest normal number. A margin is a difference of two logits: its error is
    twice that of the largest, times u, half the machine epsilon.

    At worst every addition errs in the same direction, and a sum of n terms by n units: on an image of one colour, with
    equal weights, float32 does about n/60. So the worst case is that times the number of additions from the input to a
    logit, times the layers, because errors in the hidden bounds count once more in every layer after them. In float64
    it is negligible. In float32 it is more than most margins, and their proofs are left to float64
    (:mod:`expressive_losses.verify.precise`).

    Args:
        model: on normalised images.
        shape: of one image.
        mean, std: of the normalisation, (1, C, ...).

    Attributes:
        unknown: why nothing is known of this network, or ``None``; then float32 may err by anything, and of float64 the
            error is given as 0.
        everywhere: no smaller than the error over any box in [0, 1], at worst; cheap, as it is computed once.

    Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.3 (running error analysis).
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], mean: Tensor, std: Tensor) -> None:
        self._mean, self._std = mean, std
        self._graph: LayerGraph | None = None
        self.unknown: str | None = None
        self.everywhere = 0.0
        try:
            self._graph = extract(model, shape, mean)
        except Exception as error:  # of all kinds: a module of the user's own is traced
            if is_out_of_memory(error):
                raise
            self.unknown = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.everywhere = _of_unknown(mean.dtype)
            return
        one = mean.new_ones(1, *shape)
        with torch.no_grad():
            unit = self._worst_units * torch.finfo(mean.dtype).eps
            self.everywhere = unit * float(self._of(self._magnitudes(one), None, one, mean.dtype))

    def over(self, box: Box, dtype: torch.dtype | None = None) -> Tensor:
        """Return the error of the margins over each box (pixel units) at worst, (B,); NaN where it cannot be told.

        Args:
            box: in the dtype of the network.
            dtype: in which the margins are computed; ``None``: that of the network.
        """
        dtype = dtype or box.lower.dtype
        if self._graph is None:
            return box.lower.new_full((len(box),), _of_unknown(dtype))
        return self._worst_units * torch.finfo(dtype).eps * self._in_units(box, dtype)

    def usual(self, box: Box, dtype: torch.dtype) -> Tensor:
        """Return what the margins computed in ``dtype`` and exact ones should not differ by, (B,): no worst case.

        One unit for each sum in float32, where errors mostly cancel; in float64 the worst case. 0 of unknown networks.
        """
        if self._graph is None:
            return box.lower.new_zeros(len(box))
        if dtype == torch.float64:
            return self.over(box, dtype)
        return torch.finfo(dtype).eps * self._in_units(box, dtype)

    @torch.no_grad()
    def _in_units(self, box: Box, dtype: torch.dtype) -> Tensor:
        """Return the errors where each sum errs by one unit, in units of the roundoff, (B,)."""
        size = max(1, MOST_NUMBERS // sum(layer.size for layer in self._graph.layers))
        parts = [box[begin : begin + size] for begin in range(0, max(1, len(box)), size)]
        return torch.cat([self._over(part, dtype) for part in parts])

    def _over(self, box: Box, dtype: torch.dtype) -> Tensor:
        normalised = Box((box.lower - self._mean) / self._std, (box.upper - self._mean) / self._std)
        boxes = self._graph.intervals(normalised)
        magnitudes = [torch.maximum(one.lower.abs(), one.upper.abs()) for one in boxes]
        return self._of(magnitudes, boxes, box.upper, dtype)

    def _of(
        self, magnitudes: Sequence[Tensor], boxes: Sequence[Box] | None, pixels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        unit = torch.finfo(dtype).eps
        least = torch.finfo(dtype).tiny / unit
        errors = [(pixels + self._mean.abs()) / self._std]  # the corners of the box are rounded, and its normalisation
        for layer in self._graph.layers[1:]:
            error = _error(layer, [errors[i] for i in layer.inputs], [magnitudes[i] for i in layer.inputs]) + least
            if layer.kind == "relu" and boxes is not None:
                error = error * (boxes[layer.inputs[0]].upper + self._worst_units * unit * error > 0)
            errors.append(error)
        return errors[-1].amax(1)

    def _magnitudes(self, pixels: Tensor) -> list[Tensor]:
        """Return bounds on the absolute values of every layer for images in [0, 1], signs ignored."""
        found = [(pixels + self._mean.abs()) / self._std]
        for layer in self._graph.layers[1:]:
            inputs = [found[i] for i in layer.inputs]
            if isinstance(layer, Affine):
                bias = 0.0 if layer.bias is None else layer.bias.abs()
                found.append(layer.absolute(inputs[0]) + bias)
            else:
                found.append(layer.apply(*inputs))
        return found

    @cached_property
    def _worst_units(self) -> int:
        """Every addition from the input to a logit, once more for each layer."""
        affine = [layer for layer in self._graph.layers if isinstance(layer, Affine)]
        return (1 + len(affine)) * sum(_terms(layer) + 8 for layer in affine)


def _of_unknown(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float64 else math.inf


def _error(layer: Layer, errors: Sequence[Tensor], magnitudes: Sequence[Tensor]) -> Tensor:
    """Return the error of a layer's output from those of its inputs and the inputs' magnitudes, in unit roundoffs."""
    if isinstance(layer, Reshape | Select):
        return layer.linear(errors[0])
    if isinstance(layer, Affine):
        error = layer.absolute(errors[0] + magnitudes[0])
        return error if layer.bias is None else error + layer.bias.abs()
    if layer.kind == "relu":
        return errors[0]
    return layer.apply(*(error + size for error, size in zip(errors, magnitudes, strict=True)))  # a sum, or a maximum


def _terms(layer: Affine) -> int:
    """Return how many numbers a layer adds up for one output, or more."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return torch.Size(layer.in_shape).numel()
    return weight[0].numel() if weight.ndim > 1 else 1
