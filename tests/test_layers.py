"""The layer list equals the module it was taken from, forwards, transposed and over intervals."""

import pytest
import torch
import torch.nn.functional as F
from instances import INSTANCES, instance
from torch import nn

from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import without_max_pool
from expressive_losses.errors import UserError
from expressive_losses.types import Box


class Everything(nn.Module):
    """Every supported step: constants, groups, strides that reach no edge, BatchNorm before and after, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.same = nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.linear = nn.Linear(4, 6)
        self.last_norm = nn.BatchNorm1d(6)
        self.register_buffer("mean", torch.rand(2, 1, 1))

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(1 - 2 * self.first((x - self.mean) / 0.3))))
        h = h + F.max_pool2d(self.same(h), 3, 1, 1)
        h = F.avg_pool2d(self.pool(h), 2, 1, 1, count_include_pad=False)
        flat = F.adaptive_avg_pool2d(h, 1).view(x.size(0), -1)
        return self.last_norm(self.linear((flat + h.mean((2, 3))).relu()))


def everything(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = Everything()
    model(torch.rand(32, 2, 10, 10))  # statistics that are not the trivial ones
    return model.to(dtype).eval()


def cases():
    for name in INSTANCES:
        network = instance(name)
        yield name, network.model, network.shape
    yield "everything", everything(), (2, 10, 10)


CASES = {name: (model, shape) for name, model, shape in cases()}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_forward_equals_the_module(name, dtype):
    model, shape = CASES[name]
    model = model.to(dtype)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = model(x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    graph = extract(model, shape, x)
    torch.testing.assert_close(graph(x), expected, rtol=tolerance, atol=tolerance)
    for layer, value in zip(graph.layers, graph.values(x), strict=True):
        assert value.shape[1:] == layer.shape
    model.to(torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_transposed_map(name):
    model, shape = CASES[name]
    graph = extract(model, shape, torch.zeros((), dtype=torch.float64))
    for layer in graph.layers:
        if layer.kind != "affine":
            continue
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(6, *layer.in_shape, dtype=torch.float64, generator=generator).requires_grad_()
        a = torch.randn(2, 3, *layer.shape, dtype=torch.float64, generator=generator)
        (expected,) = torch.autograd.grad(layer.linear(x), x, a.flatten(0, 1))
        torch.testing.assert_close(layer.backward(a), expected.view(2, 3, *layer.in_shape))
        by_hand = (a.flatten(0, 1) * (layer.apply(x) - layer.linear(x))).flatten(1).sum(1).view(2, 3)
        torch.testing.assert_close(layer.constant(a), by_hand)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_in_every_layer(name):
    model, shape = CASES[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4, *shape, generator=generator)
    graph = extract(model, shape, x)
    box = Box(x - 0.1, x + 0.1)
    boxes = graph.intervals(box)
    for index in range(20):
        point = box.sample(generator)
        if index % 2:
            point = torch.where(point > x, box.upper, box.lower)
        for bounds, value in zip(boxes, graph.values(point), strict=True):
            assert bounds.contains(value, atol=1e-4).all()


@torch.no_grad()
def test_max_pooling_as_relus():
    model, x = everything(), torch.rand(5, 2, 10, 10)
    graph = without_max_pool(extract(model, (2, 10, 10), x))
    assert {layer.kind for layer in graph.layers} == {"input", "affine", "relu", "add"}
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_is_folded_only_where_nothing_else_reads_the_layer():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
            self.identity = nn.Identity()

        def forward(self, x):
            h = self.conv(x)
            return self.norm(self.identity(h)) + h

    model = Shared().eval()
    model.norm.running_mean.uniform_(-1, 1)
    x = torch.rand(3, 1, 5, 5)
    graph = extract(model, (1, 5, 5), x)
    torch.testing.assert_close(graph(x), model(x))
    kinds = [type(layer).__name__ for layer in graph.layers]
    assert kinds == ["Input", "Convolution", "Scale", "Add"]
    folded = extract(nn.Sequential(model.conv, model.norm), (1, 5, 5), x)
    assert [type(layer).__name__ for layer in folded.layers] == ["Input", "Convolution"]


def test_the_module_is_left_alone():
    model = everything().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extract(model, (2, 10, 10), torch.zeros((), dtype=torch.float64))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Forward(nn.Module):
    """A module of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, x):
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    "function, message",
    [
        (torch.sigmoid, "'sigmoid' \\(sigmoid\\) is not supported"),
        (lambda x: x * x, "'mul' .* not supported"),
        (lambda x: torch.cat([x, x], 1), "'cat' .* not supported"),
        (lambda x: x.max(1)[0], "'max_1' gives max"),
        (lambda x: x * x.sum().item(), "'sum_1' mixes"),
        (lambda x: x + torch.zeros_like(x), "'zeros_like' .* not supported"),
        (lambda x: x.flatten(0), "mixes the samples"),
        (lambda x: x.t(), "mixes the samples|not supported"),
        (lambda x: x if x.sum() > 0 else -x, "cannot be taken apart"),
    ],
)
def test_what_is_not_supported_is_named(function, message):
    with pytest.raises(UserError, match=message):
        extract(Forward(function), (4,), torch.zeros(()))


def test_an_unsupported_module_is_named_by_its_path():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 4), nn.Hardswish()))
    with pytest.raises(UserError, match=r"'1\.1' \(Hardswish\) is not supported"):
        extract(model, (4,), torch.zeros(()))


def test_in_place_operations_that_tracing_misreads_are_refused():
    """fx takes relu_ for a function: other names of the same tensor would keep the old value."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.first(x)
            kept = hidden
            torch.relu_(hidden)
            return self.last(kept + hidden)

    torch.manual_seed(0)
    with pytest.raises(UserError, match="in-place operations or hooks"):
        extract(InPlace().eval(), (4,), torch.zeros(1))
