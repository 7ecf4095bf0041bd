"""Plain chains of layers, and their forward passes without what a step does not need.

A chain is a Sequential of convolution or linear layers, each followed by BatchNorm, ReLU, both or neither, and of
flattening. Nearly all networks of the papers are chains; everything else takes the module's own forward pass and
auto_LiRPA's bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expressive_losses.bounds.kernels import abs_linear, conv2d_of_few_channels, flatten, has_few_channels
from expressive_losses.bounds.products import linear
from expressive_losses.bounds.statistics import BatchStatistics, train_norm

#: The affine layers of a chain, and the BatchNorm over their outputs. Exact types: a subclass may compute anything.
_NORMS = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


class Affine(NamedTuple):
    """An affine layer merged with its BatchNorm: x -> scale * (weight x) + bias.

    Attributes:
        layer: the convolution or linear layer, for its geometry.
        weight: of the layer; for a convolution the scale is inside.
        bias: (out,), or None.
        scale: (out,) or a number, of a linear layer: its outputs are fewer than its weights.
    """

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the map of ``x``."""
        if isinstance(self.layer, nn.Linear):
            return _scaled(linear(x, self.weight), self.scale, self.bias)
        return self.layer._conv_forward(x, self.weight, self.bias)

    def of_radius(self, radius: Tensor) -> Tensor:
        """Return |scale| |weight| radius."""
        if isinstance(self.layer, nn.Linear):
            scale = self.scale.abs() if isinstance(self.scale, Tensor) else self.scale
            return _scaled(abs_linear(radius, self.weight), scale, None)
        return self.layer._conv_forward(radius, self.weight.abs(), None)


def _scaled(y: Tensor, scale: Tensor | float, bias: Tensor | None) -> Tensor:
    if isinstance(scale, Tensor) or scale != 1:
        y = y * scale
    return y if bias is None else y + bias


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

    def merged(self, statistics: BatchStatistics | None, factor: float = 1.0) -> Affine:
        """Return the affine layer with its BatchNorm, with gradient.

        Args:
            statistics: of BatchNorm, by name; ``None``: the running ones.
            factor: on the input.
        """
        weight, bias = self.affine.weight, self.affine.bias
        scale: Tensor | float = factor
        if self.norm is not None:
            name, norm = self.norm
            mean, variance = (statistics or {}).get(name, (norm.running_mean, norm.running_var))
            scale = torch.rsqrt(variance + norm.eps)
            if norm.weight is not None:
                scale = scale * norm.weight
            bias = (-mean if bias is None else bias - mean) * scale
            if norm.bias is not None:
                bias = bias + norm.bias
            scale = scale * factor
        if isinstance(self.affine, nn.Linear):
            return Affine(self.affine, weight, bias, scale)
        if isinstance(scale, Tensor):
            scale = scale.view(-1, *[1] * (weight.ndim - 1))
        elif scale == 1:
            return Affine(self.affine, laid_out(weight), bias)
        return Affine(self.affine, laid_out(weight * scale), bias)

    def folded(self, statistics: BatchStatistics | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the affine layer with its BatchNorm inside, with gradient."""
        _, weight, bias, scale = self.merged(statistics)
        return weight * scale.unsqueeze(1) if isinstance(scale, Tensor) else weight, bias

    def enter(self, x: Tensor) -> Tensor:
        """Return ``x`` as the affine layer takes it: flattened, or an image batch with its channels last."""
        return flatten(x) if self.flatten else laid_out(x)


def chain_of(model: nn.Module, flat: bool = False) -> list[Stage] | None:
    """Return the stages of a chain that ends in a linear layer, or None when the module is something else.

    Linear layers may act on the rows of images, but BatchNorm after one, and the last one, need flat inputs. A ReLU
    may stand in several places; a layer with parameters in two places is no chain.

    Args:
        model: the module.
        flat: whether its inputs are vectors.
    """
    if type(model) is not nn.Sequential or any(_altered(layer) for layer in model.modules()):
        return None
    stages: list[Stage] = []
    flatten = False
    layers = model._modules  # named_children() would leave out a layer that stands in two places
    if len({id(layer) for layer in layers.values() if _is_kept(layer)}) < sum(map(_is_kept, layers.values())):
        return None
    for name, layer in layers.items():
        last = stages[-1] if stages else None
        if type(layer) in _NORMS and getattr(layer, "padding_mode", "zeros") == "zeros" and not _misread(layer):
            stages.append(Stage(layer, flatten))
            flatten = False
        elif type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            flatten = flat = True
        elif _is_norm_of(last, layer, flat) and not (last.norm or last.relu or flatten):
            last.norm = (name, layer)
        elif type(layer) is nn.ReLU and last and not (last.relu or flatten):
            last.relu = True
        else:
            return None
    ends_linear = stages and isinstance(stages[-1].affine, nn.Linear) and not (stages[-1].norm or stages[-1].relu)
    return stages if ends_linear and flat and not flatten else None


def train_logits(stages: list[Stage], x: Tensor) -> tuple[Tensor, BatchStatistics]:
    """Return the logits in train mode and BatchNorm's statistics of this batch, with gradient.

    As the module in train mode: running statistics are updated.

    Args:
        x: normalised, (B, *shape).
    """
    statistics = {}
    for stage in stages:
        x = stage.enter(x)
        layer = stage.affine
        if isinstance(layer, nn.Linear):
            x = linear(x, layer.weight, layer.bias)
        else:
            x = layer._conv_forward(x, laid_out(layer.weight), layer.bias)
        if stage.norm is not None:
            name, norm = stage.norm
            x, statistics[name] = train_norm(norm, x)
        if stage.relu:
            x = x.relu_()
    return x, statistics


def frozen_logits(stages: list[Stage], statistics: BatchStatistics | None) -> Callable[[Tensor], Tensor]:
    """Return the logits in eval mode as a function of normalised images, for attacks: no parameter takes a gradient.

    Args:
        statistics: of BatchNorm, by name; ``None``: the running ones.
    """
    with torch.no_grad():
        maps = [_detached(stage.merged(statistics)) for stage in stages]

    def logits(x: Tensor) -> Tensor:
        for stage, affine in zip(stages, maps, strict=True):
            x = stage.enter(x)
            if has_few_channels(stage.affine, x):
                x = conv2d_of_few_channels(x, affine.weight, affine.bias, stage.affine)
            else:
                x = affine(x)
            if stage.relu:
                x = x.relu_()
        return x

    return logits


def _detached(affine: Affine) -> Affine:
    """Return the map with constants in place of parameters, which merging may have handed through."""
    return Affine(affine.layer, *(x.detach() if isinstance(x, Tensor) else x for x in affine[1:]))


def laid_out(x: Tensor) -> Tensor:
    """Return an image batch, or the weights of a 2d convolution, with channels last: convolutions are faster then."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _misread(layer: nn.Module) -> bool:
    """Return whether torch may convolve wrongly with channels last: one channel, a larger stride across than down.

    NOTE: where the output is one pixel wide, oneDNN then reads memory that nobody wrote (torch 2.13, AVX-512, float32).
    Such networks go through auto_LiRPA, which leaves channels first.
    """
    return type(layer) is nn.Conv2d and layer.in_channels == 1 and layer.stride[1] > layer.stride[0]


def _is_norm_of(stage: Stage | None, layer: nn.Module, flat: bool) -> bool:
    """Return whether a layer is BatchNorm, with running statistics, over what this stage puts out.

    Over the rows of images BatchNorm1d would take another dimension than the linear layer's outputs.
    """
    if stage is None or type(layer) is not _NORMS[type(stage.affine)] or not layer.track_running_stats:
        return False
    return flat or not isinstance(stage.affine, nn.Linear)


def _is_kept(layer: nn.Module) -> bool:
    """Return whether a layer has parameters or statistics."""
    return type(layer) in _NORMS or isinstance(layer, _BatchNorm)


def _altered(layer: nn.Module) -> bool:
    """Return whether a layer may compute something else than its type says: by hooks, or a forward of its own."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or "forward" in vars(layer)
