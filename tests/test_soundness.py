"""No bound may exceed what a sampled point of the box reaches: every model, bound method and BatchNorm mode."""

import itertools

import pytest
import torch
from instances import CLASSES, INSTANCES, METHODS, TRAINING_METHODS, data, instance, randomized, sampled_minimum

from expressive_losses.bounds import BoundedNetwork, compat, interval, lirpa, record_statistics, use_statistics
from expressive_losses.errors import UserError
from expressive_losses.registry import MODELS
from expressive_losses.types import Box, margins_of


@torch.no_grad()
@pytest.mark.parametrize("eps", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INSTANCES)
def test_margins_are_lower_bounds(name, method, eps):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, eps)
    bound = network.margins(box, labels, method)
    lowest = sampled_minimum(network, box, labels)
    slack = 1e-5 * (1 + lowest.abs())
    assert (bound <= lowest + slack).all(), (bound - lowest).max()
    if eps == 0:  # a point: the bound is exact
        torch.testing.assert_close(bound, lowest, rtol=1e-4, atol=1e-4)


OTHERS = [name for name in MODELS.names() if name not in INSTANCES and name != "factory"]
HALF_A_MINUTE = [("dm_large", "crown"), ("dm_large", "alpha_crown")]


@torch.no_grad()
@pytest.mark.parametrize(
    "name, method",
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case in HALF_A_MINUTE else [])
        for case in itertools.product(OTHERS, METHODS)
    ],
)
def test_every_other_model_is_bounded_soundly(name, method):
    """As registered, on images that are about as small as it takes."""
    shape = (1, 16, 16) if name == "dm_medium" else (1, 12, 12)
    torch.manual_seed(0)
    network = MODELS.build(name).build(shape, CLASSES)
    network = randomized(BoundedNetwork(network, shape, CLASSES, (0.3,), (0.4,)), 0)
    x, labels = data(network, size=1)
    box = Box.around(x, 0.01)
    bound, lowest = network.margins(box, labels, method), sampled_minimum(network, box, labels, samples=16)
    assert (bound <= lowest + 1e-5 * (1 + lowest.abs())).all()


@torch.no_grad()
@pytest.mark.parametrize("name", INSTANCES)
def test_methods_are_ordered(name):
    """CROWN's hidden bounds contain no less than alpha-CROWN's, and alpha-CROWN starts from CROWN."""
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.05)
    crown, alpha = (network.margins(box, labels, m) for m in ("crown", "alpha_crown"))
    assert (alpha >= crown - 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("name", INSTANCES)
def test_bounds_of_relu_inputs_hold(name):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.1)
    seen: list[torch.Tensor] = []
    relus = [m for m in network.modules() if isinstance(m, torch.nn.ReLU)]
    hooks = [relu.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0])) for relu in relus]
    boxes = network.bounds(box, labels, "ibp").relu_inputs
    for _ in range(16):
        seen.clear()
        network(box.sample())
        for bounds, value in zip(boxes, seen, strict=True):
            assert bounds.contains(value, atol=1e-4).all()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("method", TRAINING_METHODS)
@pytest.mark.parametrize("name", INSTANCES)
def test_bounds_with_batch_statistics_bound_the_network_with_those_statistics(name, method):
    """The training-time bound is sound for the function it is about: the network frozen at the recorded statistics."""
    network = instance(name).train()
    x, labels = data(network, size=6)
    with record_statistics(network) as statistics:
        network(x)
    box = Box.around(x, 0.05)
    bound = network.margins(box, labels, method, statistics=statistics)
    if statistics:
        assert bound.requires_grad
    with use_statistics(network, statistics), torch.no_grad():
        lowest = sampled_minimum(network, box, labels, samples=32)
    assert (bound <= lowest + 1e-4 * (1 + lowest.abs())).all()
    assert network.training


@torch.no_grad()
def test_one_neuron_by_hand():
    """f = (relu(x - 0.25), 0), label 0: over [0, 1] the margin is at least 0, over [0.5, 0.75] at least 0.25."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 2))
    for parameter, literal in zip(model.parameters(), ([[1.0]], [-0.25], [[1.0], [0.0]], [0.0, 0.0]), strict=True):
        parameter.copy_(torch.tensor(literal))
    network = BoundedNetwork(model, (1, 1, 1), 2).eval()
    label = torch.tensor([0])
    for low, high, expected in ((0.0, 1.0, 0.0), (0.5, 0.75, 0.25)):
        box = Box(torch.full((1, 1, 1, 1), low), torch.full((1, 1, 1, 1), high))
        assert network.margins(box, label, "ibp").item() == pytest.approx(expected)


@torch.no_grad()
def test_exhaustive_grid_in_two_dimensions():
    """Every method is below the minimum over a dense grid, and alpha-CROWN is within reach of it."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(2, 6),
        torch.nn.ReLU(),
        torch.nn.Linear(6, 6),
        torch.nn.ReLU(),
        torch.nn.Linear(6, 2),
    )
    network = BoundedNetwork(model, (1, 1, 2), 2).eval()
    ticks = torch.linspace(0.1, 0.9, 201)
    grid = torch.cartesian_prod(ticks, ticks).view(-1, 1, 1, 2)
    labels = torch.zeros(1, dtype=torch.long)
    box = Box(torch.full((1, 1, 1, 2), 0.1), torch.full((1, 1, 1, 2), 0.9))
    true = margins_of(network(grid), labels.expand(len(grid))).min()
    found = {method: network.margins(box, labels, method).item() for method in METHODS}
    assert all(bound <= true + 1e-6 for bound in found.values()), found
    assert found["ibp"] <= found["alpha_crown"]


def test_normalisation_is_part_of_the_bound():
    """Bounding a normalised network equals bounding the plain one on the normalised box by hand."""
    plain = instance("mlp")
    x, labels = data(plain)
    box = Box.around(x, 0.1)
    raw = BoundedNetwork(plain.model, plain.shape, CLASSES).eval()
    by_hand = Box((box.lower - 0.3) / 0.4, (box.upper - 0.3) / 0.4)
    torch.testing.assert_close(plain.margins(box, labels), raw.margins(by_hand, labels))


def test_the_users_module_is_left_alone():
    network = instance("cnn_tiny").train()
    frozen = next(network.model.parameters())
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    versions = [p._version for p in network.parameters()]
    x, labels = data(network)
    for method in TRAINING_METHODS:
        network.margins(Box.around(x, 0.1), labels, method)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in network.parameters() if p is not frozen)
    assert network.training
    assert versions == [p._version for p in network.parameters()]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_unknown_method_and_layer():
    network = instance("mlp")
    x, labels = data(network)
    with pytest.raises(UserError, match="unknown bound 'ipb'"):
        network.margins(Box.around(x, 0.1), labels, "ipb")
    strange = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Hardswish(), torch.nn.Linear(8, CLASSES)
    )
    with pytest.raises(UserError, match="cannot bound this network"):
        BoundedNetwork(strange, (1, 4, 4), CLASSES).margins(Box.around(x, 0.1), labels)


@pytest.mark.parametrize("name", ["cnn_tiny", "resnet"])
def test_ibp_out_of_the_pass_of_crown_ibp_is_ibp(name):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.05)
    both = network.bounds_of(box, labels, ("ibp", "crown_ibp"))
    for method, found in both.items():
        torch.testing.assert_close(found.margins, network.margins(box, labels, method), rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(both[m].margins.sum(), network.parameters(), retain_graph=True) for m in both]
    for method, ours in zip(both, gradients, strict=True):
        theirs = torch.autograd.grad(network.margins(box, labels, method).sum(), network.parameters())
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["crown", "alpha_crown"])
@pytest.mark.parametrize("name", ["cnn_tiny", "mlp", "resnet"])
def test_crown_in_parts_is_the_same(monkeypatch, capfd, name, method):
    """Every hidden neuron and every margin in a pass of its own; alpha-CROWN starts from there."""
    network = instance(name)
    x, labels = data(network)
    options = {"iterations": 2} if method == "alpha_crown" else {}
    whole = network.bounds(Box.around(x, 0.05), labels, method, **options)
    passes, compute = [], lirpa.Graph._compute
    monkeypatch.setattr(lirpa, "MOST_COEFFICIENTS", 1)
    monkeypatch.setattr(lirpa.Graph, "_compute", lambda *given, **more: passes.append(1) or compute(*given, **more))
    kind = compat.load().BoundedModule
    layers, in_parts = [], kind.batched_backward
    monkeypatch.setattr(kind, "batched_backward", lambda *given, **more: layers.append(1) or in_parts(*given, **more))
    parts = network.bounds(Box.around(x, 0.05), labels, method, **options)
    assert len(passes) == CLASSES - 1 + (method == "alpha_crown")
    assert layers, "no hidden layer was bounded in parts"
    assert capfd.readouterr() == ("", ""), "auto_LiRPA says something about each part"
    torch.testing.assert_close(parts.margins, whole.margins, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(parts.relu_inputs, whole.relu_inputs, strict=True):
        torch.testing.assert_close(ours.lower, theirs.lower)
        torch.testing.assert_close(ours.upper, theirs.upper)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cnn_tiny", "mlp", "resnet"])
def test_elision_of_the_last_layer_is_tighter(name):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.1)
    merged, subtracted = (network.margins(box, labels, method) for method in ("ibp", "ibp_logits"))
    assert (subtracted <= merged + 1e-5).all()
    assert (subtracted < merged - 1e-3).any()


def test_shrunken_relu_boxes_by_hand():
    """Two ReLUs: on [-1, 3], unstable, the upper bound shrinks to 0.8 x 3; on [1, 5] nothing does."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    with torch.no_grad():
        for layer, weight, bias in (
            (model[1], [[4.0], [4.0]], [-1.0, 1.0]),
            (model[3], [[0.0, 0.0], [1.0, 10.0]], [0.0, 0.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    network = BoundedNetwork(model, (1, 1, 1), 2)
    box = Box(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    label = torch.tensor([0])
    assert network.margins(box, label).item() == -3 - 50
    torch.testing.assert_close(network.margins(box, label, relu_shrink=0.8).item(), -2.4 - 50, rtol=1e-6, atol=0)


def test_shrinking_needs_a_plain_chain():
    network = instance("resnet")
    x, labels = data(network)
    with pytest.raises(UserError, match="relu_shrink: only for bound 'ibp' on a plain chain"):
        network.margins(Box.around(x, 0.1), labels, relu_shrink=0.5)


def test_many_classes_in_parts_are_the_same_values_and_gradients(monkeypatch):
    """60 classes: the weight differences made for one sample at a time, or all at once."""
    model = MODELS.build({"name": "mlp", "hidden": [8]}).build((1, 4, 4), 60)
    network = BoundedNetwork(model, (1, 4, 4), 60)
    x, labels = torch.rand(9, 1, 4, 4), torch.randint(60, (9,))
    found = {}
    for most in (1, 2**20):
        monkeypatch.setitem(interval._MOST_DIFFERENCES, "cpu", most)
        margins = network.margins(Box.around(x, 0.1), labels)
        found[most] = margins, *torch.autograd.grad(margins.square().sum(), network.parameters())
    for parts, whole in zip(*found.values(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
