"""The fast CROWN-IBP path equals auto_LiRPA's: margins and gradients on every model it takes, in parts or whole."""

import pytest
import torch
from instances import CLASSES, data
from test_interval import CHAINS, both
from torch import nn

from expressive_losses.bounds import BoundedNetwork, crown_ibp, record_statistics
from expressive_losses.bounds.crown_ibp import _lines as lines
from expressive_losses.bounds.crown_ibp import crown_ibp_margins
from expressive_losses.bounds.interval import interval_bounds
from expressive_losses.types import Box


def margins_and_gradients(network, box, labels, statistics=None):
    network.zero_grad()
    margins = network.bounds_of(box, labels, ["ibp", "crown_ibp"], statistics)["crown_ibp"].margins
    # weights of both signs: coefficients of both signs reach every gradient
    (margins * torch.linspace(-1, 2, margins.numel()).view_as(margins)).sum().backward()
    return margins.detach(), [p.grad.clone() for p in network.parameters()]


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_equals_auto_lirpa_with_gradients(name, training):
    fast, slow = both(name)
    x, labels = data(fast, size=4)
    box, results = Box.around(x, 0.05), []
    for network in (fast, slow):
        statistics = None
        if training:
            network.train()
            with record_statistics(network) as statistics:
                network(x)
        results.append(margins_and_gradients(network, box, labels, statistics))
    assert_same(*results)


def unusual_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(1, 0)),
        nn.Conv2d(6, 3, 1),
        nn.ReLU(),
        nn.Linear(2, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(75, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, CLASSES, bias=False),
    )


def test_unusual_convolutions():
    model = unusual_network()
    x, labels = torch.rand(3, 2, 9, 9), torch.tensor([0, 1, 3])
    fast, slow = (BoundedNetwork(model, (2, 9, 9), CLASSES, fast_chain=flag).eval() for flag in (True, False))
    box = Box.around(x, 0.1)
    assert_same(margins_and_gradients(fast, box, labels), margins_and_gradients(slow, box, labels))


@pytest.mark.parametrize("kept", [0, 10**9], ids=["bounded twice", "kept"])
@pytest.mark.parametrize("most", [1, 600, 10**9])
def test_parts_change_nothing(most, kept):
    network, _ = both("cnn_tiny")
    x, labels = data(network, size=4)
    box = Box.around(x, 0.05)
    relu_inputs = interval_bounds(network._chain, box, labels, None).relu_inputs
    margins = crown_ibp_margins(network._chain, box, relu_inputs, labels, None, most, kept)
    gradients = torch.autograd.grad(margins.sum(), network._chain[0].affine.weight, retain_graph=True)[0]
    whole = crown_ibp_margins(network._chain, box, relu_inputs, labels, None)
    torch.testing.assert_close(margins, whole, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(whole.sum(), network._chain[0].affine.weight)[0]
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("hidden", [8, None], ids=["linear after flatten", "margins after flatten"])
def test_coefficients_lie_in_memory_as_the_lines_do(hidden, monkeypatch):
    """Products of two orders would take tens of times as long."""
    layers = [nn.Flatten(), nn.Linear(96, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)] if hidden else [
        nn.Flatten(), nn.Linear(96, CLASSES)
    ]  # fmt: skip
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), *layers)
    network, orders = BoundedNetwork(model, (2, 8, 8), CLASSES).eval(), []
    through = crown_ibp._ThroughReLU.apply

    def recorded(coefficients, *lines):
        orders.append((coefficients[:, 0].stride()[1:], lines[0].stride()[1:]))
        return through(coefficients, *lines)

    monkeypatch.setattr(crown_ibp._ThroughReLU, "apply", recorded)
    network.bounds(Box.around(torch.rand(3, 2, 8, 8), 0.1), torch.tensor([0, 1, 3]), "crown_ibp")
    assert len(orders) == (3 if hidden else 2)
    assert all(own == of_lines for own, of_lines in orders)


def test_padding_in_words_goes_to_auto_lirpa():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES))
    network = BoundedNetwork(model, (1, 4, 4), CLASSES).eval()
    assert network._chain is not None
    assert not network._transposable


def test_the_relaxation_of_one_relu_by_hand():
    """f_0 - f_1 = 2 relu(x) - 1 over x in [-1, 3]: coefficient 2 takes the lower line, z, -2 the upper, 3/4 (z + 1)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.fill_(1), model[1].bias.fill_(0)
        model[3].weight.copy_(torch.tensor([[2.0], [0.0]])), model[3].bias.copy_(torch.tensor([-1.0, 0.0]))
    network = BoundedNetwork(model, (1, 1, 1), 2).eval()
    box = Box(torch.full((2, 1, 1, 1), -1.0), torch.full((2, 1, 1, 1), 3.0))
    margins = network.bounds(box, torch.tensor([0, 1]), "crown_ibp").margins
    # label 0: 2 z - 1 at z = -1; label 1: -2 (3/4) (z + 1) + 1 at z = 3
    torch.testing.assert_close(margins, torch.tensor([[-3.0], [-5.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lines_hold_on_the_tiniest_intervals(dtype):
    """The upper line is above the ReLU at both ends and the lower one below, also where u - l < 1e-8."""
    sizes = torch.tensor([0.0, 1e-30, 1e-12, 3e-9, 9e-9, 2e-8, 1e-3, 1.0], dtype=dtype)
    lower, upper = torch.cartesian_prod(torch.cat([-sizes, sizes]), torch.cat([-sizes, sizes])).unbind(1)
    lower, upper = lower[lower <= upper], upper[lower <= upper]
    low, high, intercept = lines(Box(lower, upper))
    for z in (lower, upper):
        relu = z.clamp(min=0)
        # the product and the sum here are rounded, by less than the third term
        assert (high * z + intercept >= relu - 2 * torch.finfo(dtype).eps * (relu + intercept)).all()
        assert (low * z <= relu).all()
    ordinary = (upper - lower > 1e-7) & (lower < 0) & (upper > 0)
    torch.testing.assert_close(intercept[ordinary], (-lower * upper / (upper - lower))[ordinary])
