"""Networks that come as ONNX files, as plain modules that can be bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expressive_losses.errors import UserError

Attributes = Mapping[str, Any]
#: Added to the attributes of a node: how many dimensions its input has.
_RANK = "rank of the input"


@dataclass(frozen=True)
class Step:
    """One node of the graph: which module computes which value from which values."""

    output: str
    inputs: tuple[str, ...]
    module: nn.Module


class OnnxModule(nn.Module):
    """Evaluates the nodes of an ONNX graph in their order.

    Args:
        source: name of the graph's input.
        steps: its nodes.
        result: name of its output.
    """

    def __init__(self, source: str, steps: list[Step], result: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(step.module for step in steps)
        self._wiring = [(step.output, step.inputs) for step in steps]
        self._source, self._result = source, result

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for a batch of inputs."""
        values = {self._source: x}
        for (output, inputs), layer in zip(self._wiring, self.layers, strict=True):
            values[output] = layer(*(values[name] for name in inputs))
        return values[self._result]

    def extra_repr(self) -> str:
        """Return the wiring, which the layers alone do not tell."""
        return f"{self._wiring}, {self._source} -> {self._result}"


class Constant(nn.Module):
    """An operation with a constant: x + c, x - c, c - x, x * c, x / c.

    Args:
        operation: "Add", "Sub", "Mul" or "Div".
        value: c.
        first: the constant is the left operand.
    """

    def __init__(self, operation: str, value: Tensor, first: bool) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self._operation, self._first = operation, first

    def forward(self, x: Tensor) -> Tensor:
        """Return the result."""
        if self._operation == "Add":
            return x + self.value
        if self._operation == "Mul":
            return x * self.value
        if self._operation == "Sub":
            return self.value - x if self._first else x - self.value
        return x / self.value

    def extra_repr(self) -> str:
        """Return the operation."""
        return f"{self._operation}, first={self._first}"


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum."""
        return x + y


class GlobalAverage(nn.Module):
    """The average over height and width, which stay as 1 x 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the average."""
        return F.adaptive_avg_pool2d(x, 1)


def module_of_onnx(path: Path | str) -> tuple[OnnxModule, tuple[int, ...], int]:
    """Read a classifier from an ONNX file.

    Returns:
        The module in eval mode, which takes batches of any size; the shape of one input; the number of outputs. What
        the file's input means (normalised or not) is the file's business: for pixel units, wrap it as
        ``BoundedNetwork(module, shape, classes)``.

    Raises:
        UserError: no such file, not ONNX, several inputs or outputs, or an operator that is not supported (named).
    """
    graph = _graph(Path(path))
    constants = _constants(graph)
    sources = [one for one in graph.input if one.name not in constants]
    if len(sources) != 1 or len(graph.output) != 1:
        raise UserError(f"{path}: expected one input and one output, got {len(sources)} and {len(graph.output)}")
    shape = tuple(dim.dim_value for dim in sources[0].type.tensor_type.shape.dim)[1:]
    if not shape or min(shape) < 1:
        raise UserError(f"{path}: expected an input of fixed shape (1, ...), got (..., {', '.join(map(str, shape))})")
    nodes = [node for node in graph.node if node.output[0] not in constants]
    values = {sources[0].name: torch.zeros(1, *shape)}
    steps = [_evaluated(node, constants, values, path) for node in nodes]
    module = OnnxModule(sources[0].name, steps, graph.output[0].name).eval()
    logits = values.get(graph.output[0].name)
    if logits is None or logits.ndim != 2:
        found = "a constant" if logits is None else str(tuple(logits.shape))
        raise UserError(f"{path}: expected an output of shape (1, K), got {found}")
    return module, shape, logits.shape[1]


def _evaluated(node: Any, constants: Mapping[str, Tensor], values: dict[str, Tensor], path: Path | str) -> Step:
    """Return the step of a node and enter its value on zeros, which tells the steps after it the shapes."""
    source = next((values[name] for name in node.input if name in values), None)
    step = _step(node, constants, 0 if source is None else source.ndim)
    try:
        with torch.no_grad():
            values[step.output] = step.module.eval()(*(values[name] for name in step.inputs))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: ONNX operator {node.op_type} ('{node.name}') cannot be evaluated: {reason}") from None
    return step


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise UserError("the package onnx is not installed. Type `pip install expressive_losses[onnx]`.") from None
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path)).graph
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (DecodeError, ValueError):
        raise UserError(f"{path}: not an ONNX file") from None


def _constants(graph: Any) -> dict[str, Tensor]:
    from onnx import numpy_helper

    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:  # shared weights
            found[node.output[0]] = found[node.input[0]]
    values = {name: torch.from_numpy(array.copy()) for name, array in found.items()}
    rounded = (
        name for name, one in values.items() if one.dtype == torch.float64 and not one.equal(one.float().double())
    )
    if name := next(rounded, None):
        raise UserError(f"ONNX tensor '{name}' is float64 and would be rounded to float32, which is another network")
    return values


def _step(node: Any, constants: Mapping[str, Tensor], rank: int) -> Step:
    """Return the step of a node whose input has ``rank`` dimensions, the batch included."""
    from onnx import helper

    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute} | {_RANK: rank}
    make = _MAKERS.get(node.op_type)
    if make is None:
        known = ", ".join(sorted(_MAKERS))
        raise UserError(f"ONNX operator {node.op_type} ('{node.name}') is not supported; supported: {known}")
    operands = [constants.get(name) for name in node.input]
    module = make(attributes, operands)
    if module is None:
        raise UserError(
            f"ONNX operator {node.op_type} ('{node.name}') is not supported with these operands: {attributes}"
        )
    return Step(node.output[0], tuple(name for name in node.input if name and name not in constants), module)


def _conv(attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
    weight, bias = operands[1], operands[2] if len(operands) > 2 else None
    pads = attributes.get("pads", [0, 0, 0, 0])
    if weight is None or weight.ndim != 4 or pads[:2] != pads[2:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    groups = attributes.get("group", 1)
    options = {"stride": attributes.get("strides", 1), "dilation": attributes.get("dilations", 1), "padding": pads[:2]}
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    channels = weight.shape[1] * groups
    conv = nn.Conv2d(channels, len(weight), tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **sizes)
    return _with(conv, weight=weight, bias=bias)


def _gemm(attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
    weight, bias = operands[1], operands[2] if len(operands) > 2 else None
    if weight is None or attributes.get("transA", 0) or (len(operands) > 2 and bias is None):
        return None
    if bias is not None and bias.ndim == 2 and len(bias) != 1:  # one bias for each image
        return None
    weight = attributes.get("alpha", 1.0) * (weight if attributes.get("transB", 0) else weight.T)
    return _linear(weight, None if bias is None else attributes.get("beta", 1.0) * bias.flatten())


def _matmul(_attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
    weight = operands[1]
    return None if weight is None or weight.ndim != 2 else _linear(weight.T, None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    out, inputs = weight.shape
    return _with(
        nn.Linear(inputs, out, bias=bias is not None), weight=weight, bias=None if bias is None else bias.expand(out)
    )


def _with(module: nn.Module, **values: Tensor | None) -> nn.Module:
    module.load_state_dict({name: value for name, value in values.items() if value is not None})
    return module


def _batch_norm(attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
    names = ("weight", "bias", "running_mean", "running_var")
    if any(operand is None for operand in operands[1:5]) or attributes.get("training_mode", 0):
        return None
    kind = nn.BatchNorm2d if attributes[_RANK] == 4 else nn.BatchNorm1d
    norm = kind(len(operands[1]), eps=attributes.get("epsilon", 1e-5))
    norm.load_state_dict(dict(zip(names, operands[1:5], strict=True)), strict=False)
    return norm


def _arithmetic(operation: str) -> Callable[[Attributes, list[Tensor | None]], nn.Module | None]:
    def make(_attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
        left, right = operands
        if left is None and right is None:
            return Sum() if operation == "Add" else None
        if operation == "Div" and left is not None:
            return None
        return Constant(operation, right if left is None else left, left is not None)

    return make


def _flatten(attributes: Attributes, _operands: list[Tensor | None]) -> nn.Module | None:
    return nn.Flatten() if attributes.get("axis", 1) == 1 else None


def _reshape(_attributes: Attributes, operands: list[Tensor | None]) -> nn.Module | None:
    """Take only what keeps the batch: (1, ...) and (-1 or 0, ...) of fixed sizes."""
    target = None if operands[1] is None else operands[1].tolist()
    if target is None or target[0] not in (1, 0, -1) or 0 in target[1:]:
        return None
    return nn.Flatten() if len(target) == 2 else nn.Sequential(nn.Flatten(), nn.Unflatten(1, tuple(target[1:])))


def _pool(kind: type[nn.Module]) -> Callable[[Attributes, list[Tensor | None]], nn.Module | None]:
    def make(attributes: Attributes, _operands: list[Tensor | None]) -> nn.Module | None:
        kernel, pads = tuple(attributes["kernel_shape"]), attributes.get("pads", [0, 0, 0, 0])
        plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and set(attributes.get("dilations", [1])) == {1}
        if len(kernel) != 2 or pads[:2] != pads[2:] or not plain:
            return None
        options = {"stride": tuple(attributes.get("strides", (1, 1))), "padding": tuple(pads[:2])}
        if kind is nn.AvgPool2d:
            options["count_include_pad"] = bool(attributes.get("count_include_pad", 0))
        return kind(kernel, ceil_mode=bool(attributes.get("ceil_mode", 0)), **options)

    return make


_MAKERS: dict[str, Callable[[Attributes, list[Tensor | None]], nn.Module | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Relu": lambda _attributes, _operands: nn.ReLU(),
    "Identity": lambda _attributes, _operands: nn.Identity(),
    "BatchNormalization": _batch_norm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "AveragePool": _pool(nn.AvgPool2d),
    "MaxPool": _pool(nn.MaxPool2d),
    "GlobalAveragePool": lambda _attributes, _operands: GlobalAverage(),
    **{name: _arithmetic(name) for name in ("Add", "Sub", "Mul", "Div")},
}
