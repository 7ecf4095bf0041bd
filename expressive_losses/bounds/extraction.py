"""From a module to its layers: the module is traced by torch.fx and evaluated step by step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expressive_losses.bounds.conversion import (
    Step,
    folded,
    layer_of_function,
    layer_of_module,
    reshape,
    scale_and_shift,
)
from expressive_losses.bounds.layers import Convolution, Input, Layer, LayerGraph, Linear, Scale
from expressive_losses.errors import UnsupportedNetwork


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
            self.layers.append(reshape("output", last, self.layers[last].shape, self.layers[last].shape))

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
        step = Step(n, _name(n), tuple(self._at[s] for s in sources), tuple(value.shape[1:]), args, kwargs)
        step.in_shape = self.layers[step.inputs[0]].shape
        module = self.fetch_attr(n.target) if n.op == "call_module" else None
        found = self._of_module(n, step, module) if module is not None else layer_of_function(step)
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

    def _of_module(self, n: fx.Node, step: Step, module: nn.Module) -> Layer | int | None:
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            return step.inputs[0]
        if isinstance(module, _BatchNorm):
            return self._batch_norm(n, step, module)
        return layer_of_module(step, module)

    def _batch_norm(self, n: fx.Node, step: Step, module: _BatchNorm) -> Layer | int:
        weight, bias = scale_and_shift(step, module)
        before = self.layers[step.inputs[0]]
        source = n.all_input_nodes[0]
        alone = len(source.users) == 1 and self._makers.get(step.inputs[0]) is source
        flat = isinstance(before, Linear) and len(before.shape) == 1
        if alone and (flat or isinstance(before, Convolution)):
            self.layers[step.inputs[0]] = folded(before, weight, bias)
            return step.inputs[0]
        dtype = next(iter(module.buffers())).dtype
        return Scale(step.name, step.inputs, step.shape, step.in_shape, bias.to(dtype), weight.to(dtype))


def _is_size(n: fx.Node, value: Any) -> bool:
    """Return whether a value depends on the shape of a layer's output only, and not on its numbers."""
    if n.target in ("item", "tolist") or n.target in (int, float, bool):
        return False
    parts = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(one, int | torch.dtype | torch.device) for one in parts)


def _name(n: fx.Node) -> str:
    return str(n.target) if n.op == "call_module" else n.name
