"""A network as a plain list of layers, with what bounds need of each: forward, transposed and interval maps.

auto_LiRPA stays the reference for incomplete bounds. Branch-and-bound and MIP need the layers themselves, many
small passes and no bookkeeping; they build on this.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expressive_losses.errors import UnsupportedNetwork
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

    kind: ClassVar = "input"


@dataclass(frozen=True, eq=False)
class Relu(Layer):
    """max(x, 0), elementwise."""

    kind: ClassVar = "relu"

    def apply(self, *values: Tensor) -> Tensor:
        return F.relu(values[0])


@dataclass(frozen=True, eq=False)
class Add(Layer):
    """The sum of two layers of the same shape; one layer may be read twice."""

    kind: ClassVar = "add"

    def apply(self, *values: Tensor) -> Tensor:
        return values[0] + values[1]


@dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """The maximum over windows.

    Attributes:
        windows: position (flat, within one sample's input) of each member of each window, (members, *shape);
            where a window reaches into the padding, another member is repeated, which changes no maximum.
    """

    kind: ClassVar = "max_pool"
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

    kind: ClassVar = "affine"
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


def extract(model: nn.Module, shape: Sequence[int], like: Tensor) -> LayerGraph:
    """Return the layers of a network, in eval mode, as it stands.

    Args:
        model: maps inputs (B, *shape) to (B, K); its own modes and parameters are left alone.
        shape: of one sample.
        like: a tensor of the device and dtype that the layers shall have.

    Raises:
        UnsupportedNetwork: naming the layer, when one is of no supported kind, or control flow depends on the data.
    """
    model = copy.deepcopy(model).to(like).eval()
    if fx.Tracer().is_leaf_module(model, ""):  # one layer of torch's own, such as nn.Linear: else its inside is traced
        model = nn.Sequential(model)
    try:
        traced = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NameError) as error:
        raise UnsupportedNetwork(f"the network cannot be taken apart into layers: {error}") from error
    builder = _Builder(traced, tuple(shape))
    with torch.no_grad():
        builder.run(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
    graph = LayerGraph(tuple(builder.layers))
    _refuse_other_function(graph, model, torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(like))
    return graph


@torch.no_grad()
def _refuse_other_function(graph: LayerGraph, model: nn.Module, x: Tensor) -> None:
    """Compare the layers with the network itself: tracing is blind to in-place operations and hooks."""
    expected = model(x)
    if not torch.isfinite(expected).all():
        return  # NaN weights: no bound will hold, which is said elsewhere
    if (graph(x) - expected).abs().max() > 1e-3 * (1 + expected.abs().max()):
        raise UnsupportedNetwork(
            "the network, taken apart into layers, computes something else: does it have in-place operations or hooks?"
        )


class _Builder(fx.Interpreter):
    """Evaluates the traced graph on two dummy samples, for the shapes, and notes one layer for each step.

    A step whose value is no tensor (a size) or that reads no layer (a parameter) is a plain value.
    """

    def __init__(self, traced: fx.GraphModule, shape: tuple[int, ...]) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # messages are for users
        self.layers: list[Layer] = []
        self._shape = shape
        self._at: dict[fx.Node, int] = {}  # which layer a node's value is the output of
        self._makers: dict[int, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedNetwork(f"layer '{_name(n)}': {error}") from error
        if n.op == "placeholder":
            if self.layers:
                raise UnsupportedNetwork("expected a network of one input")
            self._enter(n, Input("input", (), self._shape))
        elif n.op == "output":
            self._check_output(n)
        elif any(node in self._at for node in n.all_input_nodes) and not _is_size(n, value):
            self._note(n, value)
        return value

    def _check_output(self, n: fx.Node) -> None:
        if not isinstance(n.args[0], fx.Node) or n.args[0] not in self._at:
            raise UnsupportedNetwork("expected a network that returns one tensor which depends on its input")
        if self._at[n.args[0]] != len(self.layers) - 1:
            last = self._at[n.args[0]]
            self.layers.append(_reshape("output", last, self.layers[last].shape, self.layers[last].shape))

    def _enter(self, n: fx.Node, layer: Layer) -> None:
        self._at[n] = len(self.layers)
        self._makers[len(self.layers)] = n
        self.layers.append(layer)

    def _note(self, n: fx.Node, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise UnsupportedNetwork(
                f"layer '{_name(n)}' gives {type(value).__name__}, not one tensor: not supported here"
            )
        if value.ndim < 1 or len(value) != 2:
            raise UnsupportedNetwork(f"layer '{_name(n)}' mixes the samples of a batch")
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        sources = [node for node in n.all_input_nodes if node in self._at]
        step = _Step(n, _name(n), tuple(self._at[s] for s in sources), tuple(value.shape[1:]), args, kwargs)
        step.in_shape = self.layers[step.inputs[0]].shape
        module = self.fetch_attr(n.target) if n.op == "call_module" else None
        found = self._of_module(n, step, module) if module is not None else _of_function(step)
        if found is None:
            what = type(module).__name__ if module is not None else getattr(n.target, "__name__", n.target)
            raise UnsupportedNetwork(
                f"layer '{step.name}' ({what}) is not supported here; supported: convolution, linear, BatchNorm, "
                "average and max pooling, ReLU, sums, flatten/view/reshape, constants times or plus a layer"
            )
        if isinstance(found, Layer):
            self._enter(n, found)
        else:
            self._at[n] = found

    def _of_module(self, n: fx.Node, step: _Step, module: nn.Module) -> Layer | int | None:
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            return step.inputs[0]
        if isinstance(module, _BatchNorm):
            return self._batch_norm(n, step, module)
        return _of_module(step, module)

    def _batch_norm(self, n: fx.Node, step: _Step, module: _BatchNorm) -> Layer | int:
        weight, bias = _scale_and_shift(step, module)
        before = self.layers[step.inputs[0]]
        source = n.all_input_nodes[0]
        alone = len(source.users) == 1 and self._makers.get(step.inputs[0]) is source
        flat = isinstance(before, Linear) and len(before.shape) == 1
        if alone and (flat or isinstance(before, Convolution)):
            self.layers[step.inputs[0]] = _folded(before, weight, bias)
            return step.inputs[0]
        dtype = next(iter(module.buffers())).dtype
        return Scale(step.name, step.inputs, step.shape, step.in_shape, bias.to(dtype), weight.to(dtype))


@dataclass
class _Step:
    """What is known of one traced node."""

    node: fx.Node
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_shape: tuple[int, ...] = ()


def _is_size(n: fx.Node, value: Any) -> bool:
    """Return whether a value depends on the shape of a layer's output only, and not on its numbers."""
    if n.target in ("item", "tolist") or n.target in (int, float, bool):
        return False
    parts = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(one, int | torch.dtype | torch.device) for one in parts)


def _name(n: fx.Node) -> str:
    return str(n.target) if n.op == "call_module" else n.name


def _reshape(name: str, at: int, in_shape: tuple[int, ...], shape: tuple[int, ...]) -> Reshape:
    return Reshape(name, (at,), shape, in_shape, None)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _tuple(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _scale_and_shift(step: _Step, module: _BatchNorm) -> tuple[Tensor, Tensor]:
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


def _folded(layer: Linear | Convolution, weight: Tensor, bias: Tensor) -> Layer:
    """Return the layer followed by x * weight + bias as one layer of its own kind, rounded once."""
    dtype = layer.weight.dtype
    rows = weight.view(-1, *[1] * (layer.weight.ndim - 1))
    shifted = bias if layer.bias is None else bias + layer.bias.double() * weight
    return replace(layer, weight=(layer.weight.double() * rows).to(dtype), bias=shifted.to(dtype))


def _of_module(step: _Step, module: nn.Module) -> Layer | None:
    if isinstance(module, nn.ReLU):
        return Relu(step.name, step.inputs, step.shape)
    if isinstance(module, nn.Linear):
        bias = _detached(module.bias)
        return Linear(step.name, step.inputs, step.shape, step.in_shape, bias, module.weight.detach())
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(step, module)
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return _reshape(step.name, step.inputs[0], step.in_shape, step.shape)
    if isinstance(module, _AVERAGE_MODULES):
        return Average(step.name, step.inputs, step.shape, step.in_shape, None, module)
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and not module.return_indices:
        return _max_pool(step, module)
    return None


_AVERAGE_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip


def _convolution(step: _Step, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Convolution:
    count = len(module.kernel_size)
    padding = module.padding
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(one % 2 for one in total):
            raise UnsupportedNetwork(f"layer '{step.name}': padding 'same' with an even kernel is not supported")
        padding = tuple(one // 2 for one in total)
    elif padding == "valid":
        padding = (0,) * count
    if module.padding_mode != "zeros":
        raise UnsupportedNetwork(f"layer '{step.name}': padding mode '{module.padding_mode}' is not supported")
    bias = None if module.bias is None else module.bias.detach().view(-1, *[1] * count)
    return Convolution(
        step.name, step.inputs, step.shape, step.in_shape, bias, module.weight.detach(),
        tuple(module.stride), tuple(padding), tuple(module.dilation), module.groups,
    )  # fmt: skip


def _max_pool(step: _Step, pool: Callable[[Tensor], Tensor]) -> MaxPool:
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


def _of_function(step: _Step) -> Layer | int | None:
    target = step.node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("relu", "relu_"):
        return Relu(step.name, step.inputs, step.shape)
    if name in ("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div"):
        return _arithmetic(step, name.strip("_").removeprefix("i"))
    if len(step.inputs) > 1 and name not in ("view_as", "reshape_as"):
        return None
    if name in _RESHAPES and torch.Size(step.shape).numel() == torch.Size(step.in_shape).numel():
        return _reshape(step.name, step.inputs[0], step.in_shape, step.shape)
    if name in _NO_CHANGE and not step.kwargs.get("training", False):
        return step.inputs[0]
    if name in _AVERAGES:
        return Average(step.name, step.inputs, step.shape, step.in_shape, None, _on_first(step))
    if name in _MAXIMA:
        return _max_pool(step, _on_first(step))
    return None


def _on_first(step: _Step) -> Callable[[Tensor], Tensor]:
    """Return the traced function of its first argument, the others as traced."""
    rest, kwargs, target = step.args[1:], dict(step.kwargs), step.node.target
    kwargs.pop("input", None)
    if isinstance(target, str):
        return lambda x: getattr(x, target)(*rest, **kwargs)
    return lambda x: target(x, *rest, **kwargs)


_BINARY = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv}
_BINARY["div"] = operator.truediv


def _arithmetic(step: _Step, name: str) -> Layer | None:
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


def _with_constant(step: _Step, name: str, x: Tensor, constant: Any, on_left: bool) -> Layer | None:
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
