"""A network as a plain list of layers, with what bounds need of each: forward, transposed and interval maps.

auto_LiRPA stays the reference for incomplete bounds. Branch-and-bound and MIP need the layers themselves, many
small passes and no bookkeeping; they build on this. :mod:`expressive_losses.bounds.extraction` makes the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from expressive_losses.types import Box

Kind = Literal["input", "affine", "relu", "add", "max_pool"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One step of the network.

    Attributes:
        kind: which family of steps it belongs to.
        name: of the module in the network, or of the traced operation; for messages.
        inputs: positions of the layers that it reads.
        shape: of its output for one sample, without the batch.
    """

    kind: ClassVar[Kind]
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of neurons."""
        return torch.Size(self.shape).numel()

    def apply(self, *values: Tensor) -> Tensor:
        """Return the output (B, *shape) for the outputs of the layers that it reads."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Input(Layer):
    """The (normalised) input of the network."""

    kind: ClassVar[Kind] = "input"


@dataclass(frozen=True, eq=False)
class Relu(Layer):
    """max(x, 0), elementwise."""

    kind: ClassVar[Kind] = "relu"

    def apply(self, *values: Tensor) -> Tensor:
        return F.relu(values[0])


@dataclass(frozen=True, eq=False)
class Add(Layer):
    """The sum of two layers of the same shape; one layer may be read twice."""

    kind: ClassVar[Kind] = "add"

    def apply(self, *values: Tensor) -> Tensor:
        return values[0] + values[1]


@dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """The maximum over windows.

    Attributes:
        windows: position (flat, within one sample's input) of each member of each window, (members, *shape);
            where a window reaches into the padding, another member is repeated, which changes no maximum.
    """

    kind: ClassVar[Kind] = "max_pool"
    windows: Tensor

    def apply(self, *values: Tensor) -> Tensor:
        return values[0].flatten(1)[:, self.windows].amax(1)


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """x -> W x + b. Subclasses say what W is.

    Attributes:
        in_shape: shape of one sample's input.
        bias: broadcastable to ``shape``, or ``None``.
    """

    kind: ClassVar[Kind] = "affine"
    in_shape: tuple[int, ...]
    bias: Tensor | None

    def linear(self, x: Tensor) -> Tensor:
        """Return W x; (B, *in_shape) -> (B, *shape)."""
        raise NotImplementedError

    def absolute(self, x: Tensor) -> Tensor:
        """Return abs(W) x; (B, *in_shape) -> (B, *shape)."""
        raise NotImplementedError

    def transpose(self, a: Tensor) -> Tensor:
        """Return W^T a; (B, *shape) -> (B, *in_shape)."""
        raise NotImplementedError

    def apply(self, *values: Tensor) -> Tensor:
        y = self.linear(values[0])
        return y if self.bias is None else y + self.bias

    def interval(self, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Return centre and radius of the smallest box around the image of a box; each (B, *shape).

        W c + b and abs(W) r.
        """
        return self.apply(center), self.absolute(radius)

    def backward(self, a: Tensor) -> Tensor:
        """Pull linear forms on the output back to the input: a . (W x) = backward(a) . x.

        Args:
            a: (B, M, *shape).

        Returns:
            (B, M, *in_shape).
        """
        return self.transpose(a.flatten(0, 1)).unflatten(0, a.shape[:2])

    def constant(self, a: Tensor) -> Tensor:
        """Return what the bias contributes to linear forms on the output, a . b; (B, M, *shape) -> (B, M)."""
        if self.bias is None:
            return a.new_zeros(a.shape[:2])
        return a.flatten(2) @ self.bias.expand(self.shape).flatten()


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """A matrix on the last dimension; ``weight`` (out, in)."""

    weight: Tensor

    @cached_property
    def _absolute(self) -> Tensor:
        return self.weight.abs()

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def absolute(self, x: Tensor) -> Tensor:
        return F.linear(x, self._absolute)

    def transpose(self, a: Tensor) -> Tensor:
        return a @ self.weight


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A convolution over one to three spatial dimensions; ``weight`` (out, in / groups, *kernel)."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @cached_property
    def _absolute(self) -> Tensor:
        return self.weight.abs()

    def linear(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight)

    def absolute(self, x: Tensor) -> Tensor:
        return self._convolve(x, self._absolute)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        convolve = _CONVOLUTIONS[len(self.stride)]
        return convolve(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, a: Tensor) -> Tensor:
        turn = _TRANSPOSED[len(self.stride)]
        return turn(a, self.weight, None, self.stride, self.padding, self._rest, self.groups, self.dilation)

    @cached_property
    def _rest(self) -> tuple[int, ...]:
        """Input rows at the far side that no stride reaches: the transposed convolution must add them."""
        reached = (
            (out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
            for out, stride, padding, dilation, kernel in zip(
                self.shape[1:], self.stride, self.padding, self.dilation, self.weight.shape[2:], strict=True
            )
        )
        return tuple(size - there for size, there in zip(self.in_shape[1:], reached, strict=True))


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """Elementwise multiplication: BatchNorm that could not be folded, or a constant; ``weight`` broadcasts."""

    weight: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return x * self.weight

    def absolute(self, x: Tensor) -> Tensor:
        return x * self.weight.abs()

    def transpose(self, a: Tensor) -> Tensor:
        return a * self.weight


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """Flatten, view, reshape and the like: the identity on the flat values."""

    def linear(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)

    absolute = linear

    def transpose(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), *self.in_shape)


@dataclass(frozen=True, eq=False)
class Average(Affine):
    """Average pooling of any kind, as the function that computes it; its weights are not negative."""

    function: Callable[[Tensor], Tensor]

    def linear(self, x: Tensor) -> Tensor:
        return self.function(x)

    absolute = linear

    def transpose(self, a: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled() and a.requires_grad
        with torch.enable_grad():
            x = a.new_zeros(len(a), *self.in_shape, requires_grad=True)
            (pulled,) = torch.autograd.grad(self.function(x), x, a, create_graph=differentiable)
        return pulled


@dataclass(frozen=True, eq=False)
class Select(Affine):
    """Single positions of the input; ``index`` (*shape) into one sample's flat input."""

    index: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index]

    absolute = linear

    def transpose(self, a: Tensor) -> Tensor:
        pulled = a.new_zeros(len(a), torch.Size(self.in_shape).numel())
        return pulled.index_add(1, self.index.flatten(), a.flatten(1)).view(len(a), *self.in_shape)


@dataclass(frozen=True)
class LayerGraph:
    """The layers in the order of evaluation: the first is the input, the last the output.

    The weights are a detached snapshot, BatchNorm in eval mode and folded into the layer before it where
    possible.
    """

    layers: tuple[Layer, ...]

    @property
    def relus(self) -> tuple[int, ...]:
        """Positions of the ReLU layers."""
        return tuple(at for at, layer in enumerate(self.layers) if layer.kind == "relu")

    def values(self, x: Tensor) -> list[Tensor]:
        """Return the output of every layer for normalised inputs (B, *shape)."""
        values: list[Tensor] = [x]
        for layer in self.layers[1:]:
            values.append(layer.apply(*(values[at] for at in layer.inputs)))
        return values

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output (B, K)."""
        return self.values(x)[-1]

    def intervals(self, box: Box) -> list[Box]:
        """Return interval bounds (IBP) on the output of every layer over a box of normalised inputs."""
        boxes = [box]
        for layer in self.layers[1:]:
            boxes.append(interval_of(layer, *(boxes[at] for at in layer.inputs)))
        return boxes


def interval_of(layer: Layer, *inputs: Box) -> Box:
    """Return interval bounds on one layer's output, given those on what it reads."""
    if isinstance(layer, Affine):
        center, radius = layer.interval(inputs[0].center, inputs[0].half_width)
        return Box(center - radius, center + radius)
    lower = layer.apply(*(box.lower for box in inputs))  # the others are increasing in each of their inputs
    return Box(lower, layer.apply(*(box.upper for box in inputs)))


def without_max_pool(graph: LayerGraph) -> LayerGraph:
    """Return an equal graph with max(a, b) written as b + relu(a - b), pair by pair.

    What can branch on ReLUs is then complete for max pooling too. Interval bounds through it are looser.
    """
    layers: list[Layer] = []
    moved: list[int] = []  # old position -> new position

    def add(layer: Layer) -> int:
        layers.append(layer)
        return len(layers) - 1

    for layer in graph.layers:
        inputs = tuple(moved[at] for at in layer.inputs)
        if isinstance(layer, MaxPool):
            source = graph.layers[layer.inputs[0]].shape
            moved.append(_maximum(add, layer, inputs, source))
        else:
            moved.append(add(replace(layer, inputs=inputs)))
    return LayerGraph(tuple(layers))


def _maximum(add: Callable[[Layer], int], pool: MaxPool, inputs: tuple[int, ...], in_shape: tuple[int, ...]) -> int:
    """Enter the layers of a tournament between the members of each window; return the winner's position."""
    name, shape = pool.name, pool.shape
    minus = torch.full((), -1.0, device=pool.windows.device)
    round_ = [add(Select(name, inputs, shape, in_shape, None, index)) for index in pool.windows]
    while len(round_) > 1:
        winners = round_[-1:] if len(round_) % 2 else []
        for a, b in zip(round_[:-1:2], round_[1::2], strict=True):
            negative = add(Scale(name, (b,), shape, shape, None, minus))
            difference = add(Relu(name, (add(Add(name, (a, negative), shape)),), shape))
            winners.append(add(Add(name, (b, difference), shape)))
        round_ = winners
    return round_[0]
