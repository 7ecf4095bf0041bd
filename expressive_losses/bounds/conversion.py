"""One traced step of a network as one layer: modules, functions, arithmetic with constants."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expressive_losses.bounds.layers import Add, Average, Convolution, Layer, Linear, MaxPool, Relu, Reshape, Scale
from expressive_losses.errors import UnsupportedNetwork


@dataclass
class Step:
    """What is known of one traced node.

    Attributes:
        node: of the traced graph.
        name: for messages.
        inputs: positions of the layers that it reads.
        shape: of its output for one sample.
        args, kwargs: as evaluated on the dummy samples.
        in_shape: of the output of the first layer that it reads.
    """

    node: fx.Node
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_shape: tuple[int, ...] = ()


def reshape(name: str, at: int, in_shape: tuple[int, ...], shape: tuple[int, ...]) -> Reshape:
    """Return the layer that only changes the shape of the output of layer ``at``."""
    return Reshape(name, (at,), shape, in_shape, None)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def scale_and_shift(step: Step, module: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return BatchNorm as x * weight + bias in float64, each of shape (C, 1, ..., 1)."""
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedNetwork(f"layer '{step.name}': BatchNorm without running statistics has no eval mode")
    mean, variance = module.running_mean.double(), module.running_var.double()
    weight = (variance + module.eps).rsqrt()
    bias = -mean * weight
    if module.affine:
        weight, bias = weight * module.weight.double(), bias * module.weight.double() + module.bias.double()
    shape = (-1,) + (1,) * (len(step.in_shape) - 1)
    return weight.detach().view(shape), bias.detach().view(shape)


def folded(layer: Linear | Convolution, weight: Tensor, bias: Tensor) -> Layer:
    """Return the layer followed by x * weight + bias as one layer of its own kind, rounded once."""
    dtype = layer.weight.dtype
    rows = weight.view(-1, *[1] * (layer.weight.ndim - 1))
    shifted = bias if layer.bias is None else bias + layer.bias.double() * weight
    return replace(layer, weight=(layer.weight.double() * rows).to(dtype), bias=shifted.to(dtype))


def layer_of_module(step: Step, module: nn.Module) -> Layer | None:
    """Return the layer that a module is, or ``None`` for one that is not supported."""
    if isinstance(module, nn.ReLU):
        return Relu(step.name, step.inputs, step.shape)
    if isinstance(module, nn.Linear):
        bias = _detached(module.bias)
        return Linear(step.name, step.inputs, step.shape, step.in_shape, bias, module.weight.detach())
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(step, module)
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return reshape(step.name, step.inputs[0], step.in_shape, step.shape)
    if isinstance(module, _AVERAGE_MODULES):
        return Average(step.name, step.inputs, step.shape, step.in_shape, None, module)
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and not module.return_indices:
        return _max_pool(step, module)
    return None


_AVERAGE_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip


def padding_in_numbers(name: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Return the padding of a convolution on each side of its dimensions, also where it is given as a word.

    Raises:
        UnsupportedNetwork: "same" with an even kernel, which pads one side more than the other.
    """
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding != "same":
        return tuple(module.padding)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(one % 2 for one in total):
        raise UnsupportedNetwork(f"layer '{name}': padding 'same' with an even kernel is not supported")
    return tuple(one // 2 for one in total)


def _convolution(step: Step, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Convolution:
    count = len(module.kernel_size)
    padding = padding_in_numbers(step.name, module)
    if module.padding_mode != "zeros":
        raise UnsupportedNetwork(f"layer '{step.name}': padding mode '{module.padding_mode}' is not supported")
    bias = None if module.bias is None else module.bias.detach().view(-1, *[1] * count)
    return Convolution(
        step.name, step.inputs, step.shape, step.in_shape, bias, module.weight.detach(),
        tuple(module.stride), padding, tuple(module.dilation), module.groups,
    )  # fmt: skip


def _max_pool(step: Step, pool: Callable[[Tensor], Tensor]) -> MaxPool:
    """Find each window's members by pooling the one-hot images: no arithmetic on strides and paddings.

    Position p is a member of the windows whose maximum it takes when its value alone stands out.
    """
    size = torch.Size(step.in_shape).numel()
    device = next((value.device for value in step.args if isinstance(value, Tensor)), None)
    members: list[Tensor] = []
    for begin in range(0, size, 256):
        one_hot = torch.eye(size, device=device)[begin : begin + 256].view(-1, *step.in_shape)
        members.append(pool(one_hot).flatten(1) > 0.5)
    inside = torch.cat(members).T  # (windows, positions)
    most = int(inside.sum(1).max())
    found = inside.float().topk(most, dim=1)
    first = found.indices[:, :1].expand_as(found.indices)
    windows = torch.where(found.values > 0.5, found.indices, first)
    return MaxPool(step.name, step.inputs, step.shape, windows.T.reshape(most, *step.shape))


_RESHAPES = {
    "flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "contiguous", "view_as", "reshape_as",
}  # fmt: skip
_AVERAGES = {f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)} | {"mean"}
_MAXIMA = {f"max_pool{n}d" for n in (1, 2, 3)} | {"boolean_dispatch"}
_NO_CHANGE = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "clone", "detach"}


def layer_of_function(step: Step) -> Layer | int | None:
    """Return the layer that a function or method is, the position of the layer that it passes on, or ``None``."""
    target = step.node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("relu", "relu_"):
        return Relu(step.name, step.inputs, step.shape)
    if name in ("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div"):
        return _arithmetic(step, name.strip("_").removeprefix("i"))
    if len(step.inputs) > 1 and name not in ("view_as", "reshape_as"):
        return None
    if name in _RESHAPES and torch.Size(step.shape).numel() == torch.Size(step.in_shape).numel():
        return reshape(step.name, step.inputs[0], step.in_shape, step.shape)
    if name in _NO_CHANGE and not step.kwargs.get("training", False):
        return step.inputs[0]
    if name in _AVERAGES:
        return Average(step.name, step.inputs, step.shape, step.in_shape, None, _on_first(step))
    if name in _MAXIMA:
        return _max_pool(step, _on_first(step))
    return None


def _on_first(step: Step) -> Callable[[Tensor], Tensor]:
    """Return the traced function of its first argument, the others as traced."""
    rest, kwargs, target = step.args[1:], dict(step.kwargs), step.node.target
    kwargs.pop("input", None)
    if isinstance(target, str):
        return lambda x: getattr(x, target)(*rest, **kwargs)
    return lambda x: target(x, *rest, **kwargs)


_BINARY = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv}
_BINARY["div"] = operator.truediv


def _arithmetic(step: Step, name: str) -> Layer | None:
    """Return the sum of two layers, or a layer plus, minus, times or over a constant (also constant - layer)."""
    if set(step.kwargs) - {"input", "other"} or len(step.args) > 2:
        return None
    left, right = (*step.args, *(step.kwargs[key] for key in ("input", "other") if key in step.kwargs))
    operands = (*step.node.args, *(step.node.kwargs[key] for key in ("input", "other") if key in step.kwargs))
    nodes = [operand if isinstance(operand, fx.Node) else None for operand in operands]
    if nodes[0] is nodes[1] and name == "add":
        return Add(step.name, step.inputs * 2, step.shape)
    if len(step.inputs) == 2:
        return Add(step.name, step.inputs, step.shape) if name == "add" and _same_shape(left, right) else None
    if nodes[0] is nodes[1]:
        return None
    on_left = isinstance(left, Tensor) and nodes[0] is not None and nodes[0].op != "get_attr"
    if name in ("truediv", "div") and not on_left:
        return None
    x, constant = (left, right) if on_left else (right, left)
    if step.shape != step.in_shape or (isinstance(constant, Tensor) and constant.ndim > x.ndim):
        return None
    return _with_constant(step, name, x, constant, on_left)


def _same_shape(left: Any, right: Any) -> bool:
    return isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape


def _with_constant(step: Step, name: str, x: Tensor, constant: Any, on_left: bool) -> Layer | None:
    """Evaluate the operation at 0 and 1: that gives bias and weight, whatever the operation."""
    if isinstance(constant, Tensor) and constant.ndim == x.ndim and len(constant) != 1:
        return None  # one value for each sample of a batch: not a network
    zero, one = torch.zeros_like(x[:1]), torch.ones_like(x[:1])
    operation = _BINARY[name]
    at_zero, at_one = (operation(v, constant) if on_left else operation(constant, v) for v in (zero, one))
    weight = (at_one - at_zero)[0]
    if name in ("add", "sub"):
        weight = torch.full_like(weight, -1.0 if name == "sub" and not on_left else 1.0)  # no rounding
    return Scale(step.name, step.inputs, step.shape, step.in_shape, at_zero[0].detach(), weight.detach())
