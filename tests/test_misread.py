"""Modules that are easily misread are bounded as they are, or refused; and what changes later is seen."""

import importlib

import pytest
import torch
from instances import CLASSES, METHODS, data, plain, sampled_minimum

from expressive_losses.bounds import BoundedNetwork, compat, lirpa
from expressive_losses.errors import UserError
from expressive_losses.types import Box, margins_of


class Bent(torch.nn.Sequential):
    """Looks like a chain, computes something else."""

    def forward(self, x):
        return -super().forward(x)


class ComputedWeight(torch.nn.Module):
    """A weight that is computed in the forward pass."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, CLASSES)

    def forward(self, x):
        return torch.nn.functional.linear(x.flatten(1), 5 * self.layer.weight, self.layer.bias)


class InPlace(torch.nn.Module):
    """An in-place operation that another name of the same tensor sees."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(16, 8), torch.nn.Linear(8, CLASSES)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        kept = hidden
        torch.relu_(hidden)
        return self.last(kept + hidden)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Bent(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, CLASSES)),
        ComputedWeight,
        InPlace,
        lambda: plain(torch.nn.AvgPool2d(3, 2, padding=1), torch.nn.Flatten(), torch.nn.Linear(4, CLASSES)),
        lambda: plain(
            torch.nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            torch.nn.Flatten(),
            torch.nn.Linear(4, CLASSES),
        ),
    ],
    ids=["subclass", "computed weight", "in place", "padded pooling", "pooling without the padding"],
)
def test_modules_that_are_easily_misread_are_bounded_soundly_or_refused(make, method):
    torch.manual_seed(1)
    network = BoundedNetwork(make(), (1, 4, 4), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.2)
    try:
        bound = network.margins(box, labels, method)
    except UserError:
        return
    lowest = sampled_minimum(network, box, labels)
    assert (bound <= lowest + 1e-4 * (1 + lowest.abs())).all()


class Gain(torch.nn.Module):
    """A layer whose buffer multiplies."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x):
        return x * self.gain


@torch.no_grad()
@pytest.mark.parametrize("change", ["buffer", "setting", "layer"])
def test_what_changes_after_the_first_bounds_is_seen(change):
    """At a single point the bound is the margin, of the network as it is now."""
    torch.manual_seed(0)
    model = plain(torch.nn.Flatten(), torch.nn.Linear(16, 8), Gain(), torch.nn.LeakyReLU(0.1), torch.nn.Linear(8, 4))
    network = BoundedNetwork(model, (1, 4, 4), 4).eval()
    x, labels = data(network)
    for changed in (False, True):
        if changed and change == "buffer":
            model[2].gain.mul_(5)
        elif changed and change == "setting":
            model[3].negative_slope = 0.3
        elif changed:
            del model[3]
            model.insert(3, torch.nn.Sigmoid())
        found = network.margins(Box(x, x), labels, "crown")
        torch.testing.assert_close(found, margins_of(network(x), labels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("classes", [3, 40])
def test_a_wrong_conversion_is_seen_with_few_and_with_many_classes(monkeypatch, classes):
    """Above 16 classes random combinations of the logits are compared; one wrong bias of the last layer is enough."""
    model = plain(torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.ReLU(), torch.nn.Linear(6, classes))
    like = torch.zeros(1)
    lirpa.Graph(model, (1, 4, 4), like)
    trace = lirpa.Graph._trace

    def wrong(self, *given):
        bounded = trace(self, *given)
        x, expected = self._check
        self._check = x, expected + 0.05 * (torch.arange(classes) == classes - 1)
        return bounded

    monkeypatch.setattr(lirpa.Graph, "_trace", wrong)
    with pytest.raises(UserError, match="wrong at single points"):
        lirpa.Graph(model, (1, 4, 4), like)


def test_only_the_notes_on_parts_are_silenced(capsys):
    compat.load()
    backward = importlib.import_module("auto_LiRPA.backward_bound")
    backward.print("Batched CROWN: unstable size 3")
    backward.print("Warning: lb is larger than ub")
    assert capsys.readouterr().out == "Warning: lb is larger than ub\n"
    with pytest.warns(UserWarning, match="identity"):
        backward.warnings.warn("Creating an identity matrix", stacklevel=2)


class BothSigns(torch.nn.Module):
    """relu(h) beside relu(-h)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Linear(*size) for size in ((2, 4), (8, 4), (4, CLASSES)))

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.last(self.second(torch.cat([h.relu(), (-h).relu()], 1)).relu())


class AgainAfterRelu(BothSigns):
    """h beside tanh(relu(h))."""

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.last(self.second(torch.cat([h, h.relu().tanh()], 1)).relu())


class Shifted(torch.nn.Module):
    """A constant in front of a convolution that pads with 0."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Conv2d(*size, 3, padding=1) for size in ((1, 3), (3, 3)))
        self.last = torch.nn.Linear(48, CLASSES)

    def forward(self, x):
        x = self.first(x - 0.7).relu()
        return self.last(self.second(1 - x).relu().flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make, shape", [(BothSigns, (2,)), (AgainAfterRelu, (2,)), (Shifted, (1, 4, 4))])
def test_bounds_on_hidden_neurons_hold_where_branches_and_constants_meet(make, shape, method):
    """auto_LiRPA 0.3 gave values that are no bounds: of a layer read beside its ReLU, and of constants in patches."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters():
            parameter.mul_(2)
        network = BoundedNetwork(model, shape, CLASSES).eval()
        x, labels = data(network)
        box = Box.around(x, [0.02, 0.1, 0.3, 0.5][seed])
        found, hidden = network.bounds(box, labels, method), []
        assert all((one.lower <= one.upper + 1e-5).all() for one in found.relu_inputs)
        hook = model.second.register_forward_hook(lambda _layer, _inputs, output, seen=hidden: seen.append(output))
        lowest = sampled_minimum(network, box, labels, samples=200)
        hook.remove()
        assert (found.margins <= lowest + 1e-4 * (1 + lowest.abs())).all()
        assert (found.relu_inputs[-1].lower <= torch.stack(hidden).amin(0) + 1e-4).all()
        assert (found.relu_inputs[-1].upper >= torch.stack(hidden).amax(0) - 1e-4).all()


class Function(torch.nn.Module):
    """A function of no parameters as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class OverRoot(torch.nn.Module):
    """Subtracts, and divides by the root of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x):
        return (x - 0.1) / torch.sqrt(self.variance)


@torch.no_grad()
@pytest.mark.skipif(str(compat.lirpa_version()) >= "0.4", reason="what release 0.3 bounds wrongly")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.LogSigmoid(),
        torch.nn.Softsign(),
        Function(lambda x: (x.relu() + 0.2).sqrt()),
        Function(lambda x: 1 / (x.relu() + 0.2)),
        Function(lambda x: (x.relu() + 0.2) ** -1),
        Function(lambda x: torch.pow(x.relu() + 0.2, -2.0)),
        Function(torch.sin),
        Function(torch.tan),
        OverRoot(),
        torch.nn.LeakyReLU(-0.5),
        torch.nn.LeakyReLU(2.0),
    ],
    ids=[
        "log",
        "division",
        "root",
        "reciprocal",
        "power",
        "even power",
        "sin",
        "tan",
        "by a root",
        "falling",
        "steep",
    ],
)
def test_operations_whose_bounds_are_wrong_are_refused(layer, method):
    """At single points they are right."""
    torch.manual_seed(0)
    network = BoundedNetwork(plain(torch.nn.Linear(2, 4), layer, torch.nn.Linear(4, CLASSES)), (2,), CLASSES).eval()
    x, labels = data(network)
    with pytest.raises(UserError, match="wrong bounds of|leaky ReLU with a slope"):
        network.margins(Box.around(x, 0.2), labels, method)


@torch.no_grad()
@pytest.mark.skipif(str(compat.lirpa_version()) >= "0.4", reason="what release 0.3 bounds wrongly")
@pytest.mark.parametrize(
    "layer, method, width, seed",
    [
        (torch.nn.LogSigmoid(), "alpha_crown", 2, 3),
        (torch.nn.Softsign(), "ibp", 4, 1),
        (Function(lambda x: (x.relu() + 0.2).sqrt()), "crown_ibp", 2, 1),
        (Function(lambda x: (x.relu() + 0.2).sqrt()), "crown", 2, 1),
        (torch.nn.LeakyReLU(-2.0), "ibp", 2, 0),
    ],
    ids=["log", "division", "root", "root, crown", "falling"],
)
def test_bounds_that_are_none_are_found_without_their_names(monkeypatch, layer, method, width, seed):
    """What is relaxed wrongly shows at points of the first boxes, if it is wrong by enough."""
    monkeypatch.setattr(lirpa, "refuse_wrong_relaxations", lambda nodes: None)
    torch.manual_seed(seed)
    model = plain(torch.nn.Linear(2, width), layer, torch.nn.Linear(width, CLASSES))
    for parameter in model.parameters():
        parameter.mul_(4)
    network = BoundedNetwork(model, (2,), CLASSES).eval()
    x, labels = data(network)
    with pytest.raises(UserError, match=rf"{method} bounds of this network are none: a point of a box is .* outside"):
        network.margins(Box.around(x, 0.5), labels, method)


@torch.no_grad()
def test_hidden_bounds_are_compared_with_points_too(monkeypatch):
    """Margins may hold by luck where a hidden neuron's bounds do not."""
    found = []
    monkeypatch.setattr(lirpa, "refuse_outside", lambda method, values, *bounds: found.append(values.shape))
    network = BoundedNetwork(BothSigns(), (2,), CLASSES).eval()
    x, labels = data(network)
    for _ in range(2):
        network.margins(Box.around(x, 0.1), labels, "crown")
    assert [tuple(shape[2:]) for shape in found] == [(CLASSES - 1,), (4,), (4,), (4,)], "once, ReLU by ReLU"


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_large_logits_that_cancel_into_small_margins_are_no_mistake(method):
    """Their last digits are what rounding leaves: float32 has seven, of a hundred thousand two behind the point."""
    torch.manual_seed(0)
    model = plain(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, CLASSES))
    model[-1].bias.add_(1e5)
    network = BoundedNetwork(model, (2,), CLASSES).eval()
    x, labels = data(network)
    assert torch.isfinite(network.margins(Box.around(x, 1e-6), labels, method)).all()


def test_large_logits_excuse_rounding_only():
    value, lower, upper = torch.zeros(1, 1, 1), torch.full((1, 1), 0.9), torch.full((1, 1), torch.inf)
    lirpa.refuse_outside("ibp", value, lower, upper, torch.tensor(1e5))
    with pytest.raises(UserError, match="a point of a box is 1.1 outside"):
        lirpa.refuse_outside("ibp", value, lower + 0.2, upper, torch.tensor(1e5))


class ReluOfAConstant(torch.nn.Module):
    """A ReLU that reads a parameter beside one that reads the image."""

    def __init__(self):
        super().__init__()
        self.constant = torch.nn.Parameter(torch.randn(5))
        self.first, self.of_constant, self.last = (torch.nn.Linear(*size) for size in ((2, 4), (5, 4), (4, CLASSES)))

    def forward(self, x):
        return self.last((self.first(x.flatten(1)) + self.of_constant(self.constant.relu())).relu())


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_inside_is_not_compared_image_by_image(method):
    torch.manual_seed(0)
    network = BoundedNetwork(ReluOfAConstant(), (2,), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    lowest = sampled_minimum(network, box, labels)
    assert (network.margins(box, labels, method) <= lowest + 1e-5 * (1 + lowest.abs())).all()


class Folded(torch.nn.Module):
    """A convolution that takes each channel as an image of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(1, 1, 3, padding=1)
        self.last = torch.nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.last(self.second(self.first(x).reshape(-1, 1, 4, 4)).relu().reshape(-1, 32))


@torch.no_grad()
def test_channels_that_are_images_to_a_layer_are_not_compared_image_by_image():
    torch.manual_seed(0)
    network = BoundedNetwork(Folded(), (1, 4, 4), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    lowest = sampled_minimum(network, box, labels)
    assert (network.margins(box, labels, "ibp") <= lowest + 1e-5 * (1 + lowest.abs())).all()


@torch.no_grad()
def test_division_by_a_constant_is_bounded():
    torch.manual_seed(0)
    layer = Function(lambda x: (x - 0.5) / 0.25)
    model = plain(layer, torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, CLASSES))
    network = BoundedNetwork(model, (2,), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    for method in ("ibp", "crown"):
        assert (network.margins(box, labels, method) <= sampled_minimum(network, box, labels) + 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_images_times_a_constant_are_bounded(method):
    """Where both ends of an interval are one object, auto_LiRPA 0.3 takes it for the constant of the two."""
    torch.manual_seed(0)
    model = plain(Function(lambda x: 2 * x - 1), torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, CLASSES))
    network = BoundedNetwork(model, (2,), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    assert (network.margins(box, labels, method) <= sampled_minimum(network, box, labels) + 1e-5).all()


class Scaled(torch.nn.Module):
    """Multiplies by a function of a buffer."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("spread", torch.tensor([[0.5, 0.3]]))

    def forward(self, x):
        return (x - 0.5) * self.function(self.spread)


class Raised(torch.nn.Module):
    """Raises to a power that is a buffer."""

    def __init__(self, exponent):
        super().__init__()
        self.register_buffer("exponent", torch.tensor(exponent))

    def forward(self, x):
        return (x.relu() + 0.2) ** self.exponent


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_powers_that_are_buffers_are_bounded_from_0_on(method):
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 4), torch.nn.Linear(4, CLASSES)
    network = BoundedNetwork(plain(layers[0], Raised(2.0), layers[1]), (2,), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    assert (network.margins(box, labels, method) <= sampled_minimum(network, box, labels) + 1e-5).all()
    if str(compat.lirpa_version()) < "0.4":
        network = BoundedNetwork(plain(layers[0], Raised(-2.0), layers[1]), (2,), CLASSES).eval()
        with pytest.raises(UserError, match="wrong bounds of powers below 0"):
            network.margins(box, labels, method)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [torch.sqrt, torch.log, torch.reciprocal, lambda x: 1 / x, lambda x: x**-1])
def test_the_same_operations_of_constants_are_bounded(function, method):
    torch.manual_seed(0)
    model = plain(Scaled(function), torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, CLASSES))
    network = BoundedNetwork(model, (2,), CLASSES).eval()
    x, labels = data(network)
    box = Box.around(x, 0.1)
    assert (network.margins(box, labels, method) <= sampled_minimum(network, box, labels) + 1e-5).all()


class WithAHead(torch.nn.Module):
    """Has a BatchNorm layer for training that the forward pass does not get to."""

    def __init__(self):
        super().__init__()
        self.last, self.unused = torch.nn.Linear(2, CLASSES), torch.nn.BatchNorm1d(2)

    def forward(self, x):
        return self.last(x.relu())


@torch.no_grad()
def test_batch_norm_that_is_not_reached_is_left_out():
    torch.manual_seed(0)
    network = BoundedNetwork(WithAHead(), (2,), CLASSES).eval()
    x, labels = data(network)
    torch.testing.assert_close(network.margins(Box(x, x), labels, "crown"), margins_of(network(x), labels))
