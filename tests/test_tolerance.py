"""Rounding is relative: what float32 cannot tell from 0 is never called proven, however large the logits are."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UnsupportedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box
from expressive_losses.verify import Problem, Status, bab, precise
from expressive_losses.verify.base import DEFAULT_TOLERANCE, scale_of, verdict_of_bounds
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

EPS = 0.05
INPUTS = 16


def balanced(seed: int, method: str, size: float) -> tuple[BoundedNetwork, torch.Tensor]:
    """Return a network with logits of about ``size`` and an image of which the float64 bound of the first margin is 0.

    The bias of class 1 is moved until f_0 - f_1 has that bound. Classes 2 and 3 are far below.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x, label = torch.rand(1, INPUTS), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        last = model[-1]
        last.weight *= size / last.weight.norm()
        last.bias.copy_(torch.tensor([size, size, -10 * size, -10 * size]))
        for _ in range(2):
            exact = evaluation_copy(BoundedNetwork(model, (INPUTS,), 4), "cpu", torch.float64)
            with computing_in(torch.float64):
                gap = exact.margins(Box.around(x.double(), EPS), label, method)[0, 0]
            last.bias[1] += gap  # rounded to float32: the bound is now within half a step of 0
    return BoundedNetwork(model, (INPUTS,), 4).eval(), x


@pytest.mark.parametrize("name", ["ibp", "crown"])
def test_bounds_that_float64_puts_at_zero_are_not_proven_at_any_size_of_the_logits(name):
    """An absolute tolerance would be fooled by large logits: some of these bounds exceed it."""
    fooled = 0
    for seed in range(8):
        network, x = balanced(seed, name, size=30000.0)
        problem = Problem.of(network, x, torch.zeros(1, dtype=torch.long), EPS)
        with torch.no_grad():
            found = network.margins(problem.box, problem.labels, name)
        assert found.abs().min() < 0.1 * problem.threshold(DEFAULT_TOLERANCE)
        fooled += bool((found > DEFAULT_TOLERANCE).all())
        assert VERIFIERS.build(name)(network, problem).status == (Status.UNKNOWN,)
    assert fooled > 1


def test_the_threshold_is_the_tolerance_times_the_largest_logit_or_one():
    """Logits (0.2, -0.5): 1. Logits (30, -400): 400. A NaN proves nothing."""
    logits = torch.tensor([[0.2, -0.5], [30.0, -400.0], [torch.nan, 1.0]])
    assert scale_of(logits)[:2].tolist() == [1.0, 400.0]
    network = BoundedNetwork(nn.Linear(2, 2), (2,), 2)
    empty = Problem.of(network, torch.rand(3, 2), torch.zeros(3, dtype=torch.long), 0.0)
    problem = Problem(**{**vars(empty), "logits": logits})
    assert problem.threshold(1e-3)[:2].tolist() == pytest.approx([1e-3, 0.4])
    for margin, verified in ((0.002, [True, False, False]), (0.5, [True, True, False])):
        status = verdict_of_bounds(problem, torch.full((3, 1), margin), 1e-3).status
        assert [one is Status.VERIFIED for one in status] == verified


def tied(size: float, margin: float) -> tuple[BoundedNetwork, Problem]:
    """f = (size relu(x) + margin, 0) over x in [0, 0.1]: the smallest margin is ``margin``, the scale ``size / 20``."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight.fill_(1.0)
        model[2].weight[0] = size
        model[2].bias[0] = margin
    network = BoundedNetwork(model, (1,), 2).eval()
    return network, Problem.of(network, torch.tensor([[0.05]]), torch.zeros(1, dtype=torch.long), 0.05)


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "alpha-crown", "bab", "input-bab", "mip"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-3])
def test_every_verifier_has_the_same_rule(name, tolerance):
    """Scale 500: a margin of half of 500 tolerances is not proven, one of twice that is."""
    for share, status in ((0.5, Status.UNKNOWN), (2.0, Status.VERIFIED)):
        network, problem = tied(1e4, share * 500 * tolerance)
        limit = {"max_nodes": 64} if name == "input-bab" else {}
        found = VERIFIERS.build({"name": name, "tolerance": tolerance, **limit})(network, problem)
        assert found.status == (status,), (share, found.margins)


def cancelling(seed: int, size: float, inputs: int = 16) -> tuple[BoundedNetwork, torch.Tensor]:
    """f = (sum h - sum of the same h in another order - size / 1e6, 0), h >= 0 large: f_0 - f_1 < 0 everywhere.

    In float32 the two sums differ, by more than the small constant for some networks.
    """
    noise = torch.Generator().manual_seed(seed)
    first, second, last = nn.Linear(inputs, inputs), nn.Linear(inputs, 2 * inputs), nn.Linear(2 * inputs, 2)
    with torch.no_grad():
        first.weight.copy_(size * torch.rand(inputs, inputs, generator=noise))
        rows = torch.rand(inputs, inputs, generator=noise)
        second.weight.copy_(torch.cat([rows, rows[torch.randperm(inputs, generator=noise)]]))
        last.weight.zero_()
        last.weight[0, :inputs], last.weight[0, inputs:] = 1, -1
        for layer in (first, second):
            layer.bias.zero_()
        last.bias.copy_(torch.tensor([-1e-6 * size, 0.0]))
    network = BoundedNetwork(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last), (inputs,), 2).eval()
    return network, torch.rand(1, inputs, generator=noise)


@pytest.mark.parametrize(("name", "eps"), [("ibp", 0.0), ("crown-ibp", 0.01), ("crown", 0.01), ("bab", 0.01)])
def test_large_activations_that_cancel_prove_nothing(name, eps, monkeypatch):
    """Every image is misclassified. Without :class:`Rounding` some are proven: the logits, near 0, do not show it."""
    fooled, label = 0, torch.zeros(1, dtype=torch.long)
    problems = [cancelling(seed, size=20.0) for seed in range(12)]
    for network, x in problems:
        problem = Problem.of(network, x, label, eps)
        assert VERIFIERS.build(name)(network, problem).status != (Status.VERIFIED,)
    monkeypatch.setattr(bab, "in_float64", lambda network, problem: (network, problem))
    for network, x in problems:
        unguarded = VERIFIERS.build(name)(network, replace(Problem.of(network, x, label, eps), rounding=None))
        fooled += unguarded.status == (Status.VERIFIED,)
    assert fooled > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", ["chain", "residual", "pooled"])
def test_rounding_errors_stay_within_what_is_allowed_for_them(make, dtype):
    """Of bounds in float32, against float64."""
    network = networks()[make].to(dtype)
    x = torch.rand(20, *network.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    labels, box = torch.zeros(20, dtype=torch.long), Box.around(x, EPS)
    allowed = network.rounding().over(box).double()
    assert (allowed <= network.rounding().everywhere).all() and (allowed > 0).all()
    if dtype is torch.float64:
        assert allowed.max() < 1e-7  # the worst case of float64 is far below every tolerance
        return
    usual = network.rounding().usual(box, dtype).double()
    assert (usual < allowed).all()
    exact = evaluation_copy(network, "cpu", torch.float64)
    for method in ("ibp", "crown_ibp", "crown"):
        with torch.no_grad():
            found = network.margins(box, labels, method).double()
            with computing_in(torch.float64):
                double = exact.margins(Box(box.lower.double(), box.upper.double()), labels, method)
        assert ((found - double).abs().amax(1) < usual).all(), method


def networks() -> dict[str, BoundedNetwork]:
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    chain = nn.Sequential(*conv, nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 5))
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    made = {"chain": chain, "residual": Residual(), "pooled": pooled}
    return {name: BoundedNetwork(one, (1, 6, 6), 5, [0.3], [0.2]).eval() for name, one in made.items()}


class Residual(nn.Module):
    """x + conv(relu(conv(x))), averaged, to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.last = nn.AvgPool2d(2), nn.Linear(27, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        return self.last(self.pool(x + self.two(x.relu())).flatten(1))


def test_the_errors_of_an_image_do_not_depend_on_those_beside_it(monkeypatch):
    network = networks()["pooled"]
    box = Box.around(torch.rand(7, 1, 6, 6), EPS)
    whole = network.rounding().over(box)
    monkeypatch.setattr("expressive_losses.bounds.rounding.MOST_NUMBERS", 1000)  # three images at a time
    torch.testing.assert_close(network.rounding().over(box), whole, rtol=1e-5, atol=0)
    assert network.rounding().over(box[:0]).shape == (0,)


@pytest.mark.parametrize("written", ["weight", "data"])
def test_rounding_is_computed_anew_when_the_weights_change(written):
    """Also by ``weight.data``, which torch does not count."""
    network = networks()["chain"]
    box = Box.around(torch.rand(2, 1, 6, 6), EPS)
    before = network.rounding().over(box)
    assert network.rounding() is network.rounding()
    with torch.no_grad():
        weight = network.model[-1].weight
        (weight if written == "weight" else weight.data).mul_(10.0)
    assert (network.rounding().over(box) > 5 * before).all()


def test_a_network_that_cannot_be_taken_apart_is_named():
    network = BoundedNetwork(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), (4,), 2).eval()
    assert "layer '1' (Sigmoid) is not supported" in network.rounding().unknown
    box = Box.around(torch.rand(3, 4), EPS)
    assert network.rounding().over(box).tolist() == [math.inf] * 3, "so that float32 proves nothing"
    assert network.rounding().over(box, torch.float64).tolist() == [0.0] * 3
    assert network.rounding().usual(box, torch.float32).tolist() == [0.0] * 3


def nearly_dead(dtype: torch.dtype) -> tuple[BoundedNetwork, torch.Tensor, float]:
    """Return f = (1 - size relu(z), 0) whose computed bound on z over the box is <= 0, the image, and the radius.

    In exact arithmetic z is above 0 at the upper corner, by so much that f_0 < f_1 there.
    """
    eps, size = 2.0**-6, 4.0 / torch.finfo(dtype).eps
    for seed in range(100):
        noise = torch.Generator().manual_seed(seed)
        x = torch.randint(30, 220, (1, 64), generator=noise).to(dtype) / 256
        hidden, last = nn.Linear(64, 1, dtype=dtype), nn.Linear(1, 2, dtype=dtype)
        network = BoundedNetwork(nn.Sequential(hidden, nn.ReLU(), last), (64,), 2).to(dtype).eval()
        with torch.no_grad():
            hidden.weight.copy_(torch.rand(1, 64, generator=noise, dtype=dtype) + 0.5)
            last.weight.copy_(torch.tensor([[-size], [0.0]]))
            last.bias.copy_(torch.tensor([1.0, 0.0]))
            exact = sum(
                (Fraction(pixel) + Fraction(eps)) * Fraction(weight)
                for pixel, weight in zip(x[0].tolist(), hidden.weight[0].tolist(), strict=True)
            )
            hidden.bias.fill_(-float(exact))
            while _upper(network, x, eps) > 0:
                hidden.bias.copy_(torch.nextafter(hidden.bias, torch.full_like(hidden.bias, -torch.inf)))
        if 1 - Fraction(size) * (exact + Fraction(hidden.bias.item())) < 0:
            return network, x, eps
    pytest.fail("no such network among a hundred")


@torch.no_grad()
def _upper(network: BoundedNetwork, x: torch.Tensor, eps: float) -> float:
    found = network.bounds(Box.around(x, eps), torch.zeros(1, dtype=torch.long), "ibp")
    return float(found.relu_inputs[0].upper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "alpha-crown", "bab"])
def test_a_neuron_that_only_rounding_shuts_proves_nothing(name, dtype):
    """The smallest margin is below 0; computed, the ReLU is 0 over the whole box and the margin 1."""
    network, x, eps = nearly_dead(dtype)
    with computing_in(dtype):
        problem = Problem.of(network, x, torch.zeros(1, dtype=torch.long), eps)
        found = VERIFIERS.build(name)(network, problem)
    assert found.status == (Status.UNKNOWN,), found.margins
    if name in ("ibp", "crown"):
        assert float(found.margins) == pytest.approx(1.0)


def held_back(share: float) -> tuple[BoundedNetwork, Problem]:
    """f = (sum h - sum of the same h + share x 1e-4 x scale, 0): what float32's rounding must allow for is far more."""
    network, x = cancelling(0, size=5.0)
    with torch.no_grad():
        network.model[2].weight[INPUTS:] = network.model[2].weight[:INPUTS]
        network.model[4].bias[0] = share * DEFAULT_TOLERANCE
    return network, Problem.of(network, x, torch.zeros(1, dtype=torch.long), 0.0)


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "alpha-crown"])
def test_what_only_the_rounding_of_float32_holds_back_is_proven_in_float64(name):
    """By the same rule: above the tolerance, and above float64's worst case."""
    for share, status in ((0.5, Status.UNKNOWN), (18.0, Status.VERIFIED)):
        network, problem = held_back(share)
        assert problem.threshold(DEFAULT_TOLERANCE) > 18 * DEFAULT_TOLERANCE, "float32 alone cannot tell"
        assert VERIFIERS.build(name)(network, problem).status == (status,)


def test_the_second_look_is_only_taken_where_it_may_help(monkeypatch):
    network, problem = tied(1e4, 1.0)
    asked = []
    monkeypatch.setattr(precise, "evaluation_copy", lambda *given: asked.append(1) or evaluation_copy(*given))
    assert VERIFIERS.build("ibp")(network, problem).status == (Status.VERIFIED,)
    network, problem = tied(1e4, -1.0)
    assert VERIFIERS.build("ibp")(network, problem).status == (Status.UNKNOWN,)
    assert not asked
    network, problem = held_back(18.0)
    late = replace(problem, deadline=0.0)
    assert VERIFIERS.build("ibp")(network, late).status == (Status.UNKNOWN,), "its time is over"
    for _ in range(2):
        assert VERIFIERS.build("ibp")(network, problem).status == (Status.VERIFIED,)
    assert len(asked) == 1, "the copy is kept"
    network.model[4].bias.data[0] = -1.0
    problem = Problem.of(network, problem.images, problem.labels, 0.0)
    assert VERIFIERS.build("ibp")(network, problem).status == (Status.UNKNOWN,), "and made anew for other weights"


def test_the_box_of_the_second_look_holds_the_exact_one():
    """Corners k/255 -+ eps as fractions, of all pixels and some radii."""
    network = BoundedNetwork(nn.Linear(256, 2), (256,), 2).eval()
    exact = evaluation_copy(network, "cpu", torch.float64)
    pixels = torch.arange(256, dtype=torch.float32)[None] / 255
    for eps in (0.0, 2 / 255, 8 / 255, 0.1, 0.3, 0.4, 1.0):
        problem = Problem.of(network, pixels, torch.zeros(1, dtype=torch.long), eps)
        box = precise._in_float64(exact, problem).box
        for value in range(256):
            lowest = max(Fraction(value, 255) - Fraction(eps), Fraction(0))
            highest = min(Fraction(value, 255) + Fraction(eps), Fraction(1))
            assert Fraction(float(box.lower[0, value])) <= lowest
            assert Fraction(float(box.upper[0, value])) >= highest


class OnlyFloat32(nn.Module):
    """A module that fails in float64, as somebody's own may."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = held_back(18.0)[0].model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + torch.zeros(INPUTS, dtype=torch.float32)) if x.dtype == torch.float32 else x.float() @ x


@pytest.mark.parametrize("name", ["ibp", "bab", "input-bab", "mip"])
def test_a_module_that_only_computes_in_float32_proves_nothing_and_says_why(name):
    network = BoundedNetwork(OnlyFloat32(), (INPUTS,), 2).eval()
    problem = held_back(18.0)[1]
    problem = Problem.of(network, problem.images, problem.labels, 0.0)
    problem = replace(problem, rounding=held_back(18.0)[0].rounding())
    with pytest.raises(UnsupportedNetwork, match="cannot be computed in float64, where proofs are made: RuntimeError"):
        VERIFIERS.build(name)(network, problem)
