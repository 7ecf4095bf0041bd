"""Loss fusion: chords above exponentials, one number that bounds all margins, auto_LiRPA's own value and gradient."""

import copy
import math

import pytest
import torch
from instances import CLASSES, INSTANCES, data, instance, sampled_minimum
from test_crown_ibp import assert_same
from torch import Tensor, nn

from expressive_losses.bounds import BoundedNetwork, compat, record_statistics
from expressive_losses.bounds.loss_fusion import SummedExponentials
from expressive_losses.errors import UserError
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Bounds, Box


def interval(lower: Tensor, upper: Tensor) -> Bounds:
    return Bounds(lower, Box(lower, upper), (), upper)


def soft_minimum(margins: Tensor) -> Tensor:
    """-log sum_j exp(-m_j), (B, 1)."""
    return -torch.logsumexp(-margins, 1, keepdim=True)


def test_the_chords_by_hand():
    """Margins in [0, log 2] and [-log 3, 0]: slopes 0.5 / log 2 and 2 / log 3, constants 1 and 3 + 2 / log 3 * -log 3.

    Label 1 of three classes: the row is (-s_0, s_0 + s_2, -s_2). Of a least value v the margin is -log(2 - v).
    """
    fused = SummedExponentials(interval(torch.tensor([[0.0, -math.log(3)]]), torch.tensor([[math.log(2), 0.0]])))
    scale = 3.0  # exp(c), c the largest -l: the row and the constant are in its units
    first, second = 0.5 / math.log(2) / scale, 2 / math.log(3) / scale
    expected = torch.tensor([[[-first, first + second, -second]]])
    torch.testing.assert_close(fused.row(torch.tensor([1])), expected)
    margin = fused.margin(torch.tensor([[0.5 / scale]]))
    torch.testing.assert_close(margin, torch.tensor([[-math.log(1 + 3 - 2 - 0.5)]]))


@pytest.mark.parametrize("width", [0.0, 1e-7, 1e-4, 1.0, 40.0])
def test_the_sum_lies_below_its_bound_and_meets_it_at_the_corners(width):
    generator = torch.Generator().manual_seed(0)
    lower = 4 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    upper = lower + width * torch.rand(64, 5, generator=generator, dtype=torch.float64)
    fused, labels = SummedExponentials(interval(lower, upper)), torch.zeros(64, dtype=torch.long)

    def bound_at(margins: Tensor) -> Tensor:
        logits = torch.cat([torch.zeros_like(margins[:, :1]), -margins], 1)
        return fused.margin((fused.row(labels) @ logits.unsqueeze(2)).squeeze(2))

    # rounding is that of the largest term, exp(-l): sums are compared in its units
    largest = (-lower).amax(1, keepdim=True)
    for share in (0.0, 0.01, 0.5, 0.9, 1.0, torch.rand(64, 5, generator=generator, dtype=torch.float64)):
        margins = lower + share * (upper - lower)
        bound, true = (torch.exp(-value - largest) for value in (bound_at(margins), soft_minimum(margins)))
        assert (bound >= true - 1e-13).all()
    corner = torch.where(torch.rand(64, 5, generator=generator) < 0.5, lower, upper)
    for margins in (lower, corner if width >= 1 else lower):
        wide = ((upper - lower) > 1e-4).all(1) | (margins == lower).all(1)
        bound, true = (torch.exp(-value - largest)[wide] for value in (bound_at(margins), soft_minimum(margins)))
        torch.testing.assert_close(bound, true, rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("radius", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("name", INSTANCES)
def test_bounds_the_soft_minimum_of_the_margins(name, radius):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, radius)
    found = network.margins(box, labels, "crown_ibp_fused")
    assert found.shape == (len(labels), 1)
    lowest = soft_minimum(sampled_minimum(network, box, labels))
    # the sampled minima of several margins need not be of one point: compare point by point too
    points = [box.center, *(box.sample(torch.Generator().manual_seed(seed)) for seed in range(16))]
    for logits in map(network, points):
        own = logits.gather(1, labels.unsqueeze(1)) - logits
        own = own[torch.arange(CLASSES) != labels.unsqueeze(1)].view(len(labels), -1)
        assert (found <= soft_minimum(own) + 1e-4 * (1 + lowest.abs())).all()
    if radius == 0:
        torch.testing.assert_close(found, lowest, rtol=1e-4, atol=1e-4)


def value_and_gradients(network: BoundedNetwork, margins: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    weights = torch.linspace(0.5, 2, margins.numel()).view_as(margins)
    return margins.detach(), torch.autograd.grad((weights * margins).sum(), list(network.parameters()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", INSTANCES)
def test_the_chain_equals_the_graph(name, training):
    results = []
    for fast in (True, False):
        network = instance(name)
        network.fast_chain = fast
        x, labels = data(network, size=4)
        statistics = None
        if training:
            network.train()
            with record_statistics(network) as statistics:
                network(x)
        found = network.bounds_of(Box.around(x, 0.05), labels, ("ibp", "crown_ibp_fused"), statistics)
        torch.testing.assert_close(
            found["ibp"].margins, network.margins(Box.around(x, 0.05), labels, "ibp", statistics=statistics),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        results.append(value_and_gradients(network, found["crown_ibp_fused"].margins))
    assert_same(*results)


class SummedExponentialsOfOneLabel(nn.Module):
    """sum_j exp(f_j - f_y) for one label, the last layer merged with the differences."""

    def __init__(self, model: nn.Sequential, differences: Tensor) -> None:
        super().__init__()
        self.body, last = copy.deepcopy(model[:-1]), model[-1]  # tracing writes to what it traces
        self.last = nn.Linear(last.in_features, len(differences))
        with torch.no_grad():
            self.last.weight.copy_(differences @ last.weight)
            self.last.bias.copy_(differences @ last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.last(self.body(x))).sum(1, keepdim=True)


@pytest.mark.parametrize("label", range(CLASSES))
def test_equals_loss_fusion_in_auto_lirpa(label):
    torch.manual_seed(label)
    layers = (nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    model, x = nn.Sequential(*layers), torch.rand(5, 1, 4, 4)
    network, labels = BoundedNetwork(model, (1, 4, 4), CLASSES).eval(), torch.full((5,), label)
    ours = network.margins(Box.around(x, 0.1), labels, "crown_ibp_fused")

    lirpa = compat.load()
    differences = torch.eye(CLASSES)[[c for c in range(CLASSES) if c != label]] - torch.eye(CLASSES)[label]
    single = SummedExponentialsOfOneLabel(model, differences)
    bounded = lirpa.BoundedModule(single, x, bound_opts={"loss_fusion": True})
    norm = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=(x - 0.1).clamp(0, 1), x_U=(x + 0.1).clamp(0, 1))
    _, upper = bounded.compute_bounds(x=(lirpa.BoundedTensor(x, norm),), method="CROWN-IBP", bound_lower=False)
    largest = next(node for node in bounded.modules() if type(node).__name__ == "BoundExp").max_input
    theirs = -upper.log() - largest  # its sum is in units of the largest term
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    first = next(p for p in bounded.parameters() if p.shape == (12, 16))
    expected = torch.autograd.grad(theirs.sum(), first)[0]
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), model[1].weight)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gradients_stay_finite(scale):
    """From a box of no size to one whose interval bounds are far too loose."""
    network = instance("cnn_tiny")
    with torch.no_grad():
        list(network.parameters())[-2].mul_(scale)
    x, labels = data(network)
    for radius in (0.0, 1e-6, 0.1, 1.0):
        margins = network.margins(Box.around(x, radius), labels, "crown_ibp_fused")
        value, gradients = value_and_gradients(network, margins)
        assert all(torch.isfinite(found).all() for found in (value, *gradients))


@pytest.mark.parametrize("beta", [0.25, torch.tensor(0.25)])
def test_sums_are_mixed_with_beta(beta):
    """One fused margin -log 2, IBP margins 0 and -log 3: the sum is 0.25 * 2 + 0.75 * (1 + 3) = 3.5."""
    margins = {"ibp": torch.tensor([[0.0, -math.log(3)]]), "crown_ibp_fused": torch.tensor([[-math.log(2)]])}
    batch = BoundedBatch(torch.tensor([0]), None, None, margins, {"kappa": 1.0, "beta": beta})
    loss = LOSSES.build({"name": "crown_ibp", "fused": True})
    assert float(loss(batch)["loss"]) == pytest.approx(math.log(1 + 3.5), rel=1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_options_are_refused(fast):
    network = instance("cnn_tiny")
    network.fast_chain = fast
    x, labels = data(network)
    with pytest.raises(UserError, match="takes no options, got iterations"):
        network.margins(Box.around(x, 0.1), labels, "crown_ibp_fused", iterations=3)
    with pytest.raises(UserError, match="relu_shrink: only for bound 'ibp'"):
        network.bounds_of(Box.around(x, 0.1), labels, ("ibp", "crown_ibp_fused"), relu_shrink=0.8)


def test_the_loss_is_the_cross_entropy_of_the_fused_margin():
    """log(1 + sum) with the sum's bound exp(-m)."""
    assert float(verified_cross_entropy(torch.tensor([[-math.log(6)]]))) == pytest.approx(math.log(7), rel=1e-6)
