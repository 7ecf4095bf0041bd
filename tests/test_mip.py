"""MIP: exact against enumeration, grids and its own minimisers; honest about time; agrees with branch-and-bound."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.extraction import extract
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of, other_classes
from expressive_losses.verify import Cascade, Problem, Status, build_stages
from expressive_losses.verify.base import is_counterexample
from expressive_losses.verify.mip import Mip
from expressive_losses.verify.mip_model import COST, DROPS, FAILS, Model, Solution, encode, intervals, matrices_of

EXACT = {"gap": 0.0, "tolerance": 0.0, "first": ()}


class Residual(nn.Module):
    """conv, relu, then relu(x + conv(x)), pooling of one kind, linear."""

    def __init__(self, pool: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.norm, self.pool = nn.BatchNorm2d(2), pool or nn.Identity()
        self.last = nn.Linear(8 if pool else 32, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(x + self.second(x))
        return self.last(torch.flatten(self.pool(x), 1))


def mlp(seed: int, inputs: int = 2, hidden: int = 6, depth: int = 2) -> BoundedNetwork:
    torch.manual_seed(seed)
    sizes = [inputs] + [hidden] * depth
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return BoundedNetwork(nn.Sequential(*layers, nn.Linear(hidden, 3)), (inputs,), 3, mean=[0.4], std=[0.3]).eval()


def residual(seed: int, pool: nn.Module | None) -> BoundedNetwork:
    torch.manual_seed(seed)
    model = Residual(pool)
    model(torch.rand(32, 1, 4, 4))  # running statistics that are not the trivial ones
    return BoundedNetwork(model, (1, 4, 4), 3, mean=[0.5], std=[0.4]).eval()


POOLS = {
    "none": None,
    "average": nn.AvgPool2d(2),
    "max": nn.MaxPool2d(2),
    "overlapping max": nn.MaxPool2d(3, 2, padding=1),
}


def problem_for(network: BoundedNetwork, eps: float, count: int = 4, seed: int = 5, **fields) -> Problem:
    """Random images, labelled as the network sees them."""
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(seed)).to(network.mean)
    with torch.no_grad():
        return Problem.of(network, x, network(x).argmax(1), eps, **fields)


def decided(verdict) -> list[bool]:
    return [status is not Status.UNKNOWN for status in verdict.status]


def test_two_inputs_against_a_grid():
    """On a grid of 201 x 201 points of each box: no counterexample where verified, and one where falsified."""
    ticks = torch.linspace(0, 1, 201)
    for seed in range(25):
        network = mlp(seed)
        problem = problem_for(network, 0.15)
        verdict = Mip()(network, problem)
        assert all(decided(verdict))
        for row, status in enumerate(verdict.status):
            box = problem.box[row : row + 1]
            x, y = (box.lower[0, i] + ticks * (box.upper - box.lower)[0, i] for i in (0, 1))
            with torch.no_grad():
                lowest = margins_of(network(torch.cartesian_prod(x, y)), problem.labels[row].repeat(201**2)).amin(0)
            assert (verdict.margins[row] <= lowest + 1e-5).all()
            assert (status is Status.VERIFIED) == (lowest > 0).all() or lowest.min().abs() < 1e-2
            refuted = is_counterexample(network, box, problem.labels[row : row + 1], verdict.witness[row : row + 1])
            assert refuted.item() == (status is Status.FALSIFIED)


def minimum_by_enumeration(network: BoundedNetwork, box: Box, label: int, other: int) -> float:
    """One hidden layer: for each of the 2^n activation patterns, the minimum of f_y - f_j where it is the pattern."""
    first, last = network.model[0], network.model[2]
    mean, std = network.mean.item(), network.std.item()
    w = first.weight.detach().double().numpy() / std
    b = first.bias.detach().double().numpy() - w.sum(1) * mean
    c = (last.weight[label] - last.weight[other]).detach().double().numpy()
    d = (last.bias[label] - last.bias[other]).item()
    limits = list(zip(box.lower[0].tolist(), box.upper[0].tolist(), strict=True))
    best = np.inf
    for pattern in itertools.product([0, 1], repeat=len(w)):
        on = np.array(pattern)
        sign = 1 - 2 * on  # rows: sign * (w x + b) <= 0
        found = linprog((c * on) @ w, A_ub=sign[:, None] * w, b_ub=-sign * b, bounds=limits)
        best = min(best, found.fun + (c * on) @ b + d if found.status == 0 else np.inf)
    return best


def test_minima_against_enumeration():
    for seed in range(6):
        network = mlp(seed, inputs=3, hidden=6, depth=1)
        problem = problem_for(network, 0.3, count=2)
        status_and_margins = Mip(**EXACT)(network, problem)
        for row, status in enumerate(status_and_margins.status):
            label = int(problem.labels[row])
            others = other_classes(problem.labels, 3)[row].tolist()
            exact = [minimum_by_enumeration(network, problem.box[row : row + 1], label, other) for other in others]
            if status is Status.VERIFIED:
                # never above the minimum; what the solver's tolerances may add up to is below 5e-5 here
                margins = status_and_margins.margins[row].tolist()
                assert all(one - 5e-5 < found < one + 1e-6 for found, one in zip(margins, exact, strict=True))
            assert (status is Status.VERIFIED) == (min(exact) > 0)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("bounds", ["ibp", "crown"])
def test_residual_networks_with_pooling_are_solved_exactly(pool, bounds):
    """At the solver's minimiser the network itself has the value that the solver proves to be the least."""
    network = residual(0, POOLS[pool])
    problem = problem_for(network, 0.05, count=3)
    exact = network.double()
    graph = extract(exact.model, exact.shape, exact.mean)
    box = Box(problem.box.lower.double(), problem.box.upper.double())
    for row in range(3):
        one = box[row : row + 1]
        normalised = Box(exact.normalize(one.lower), exact.normalize(one.upper))
        encoded = encode(graph, matrices_of(graph), intervals(graph, normalised, None))
        model, logits = encoded.model, encoded.output
        assert model.binaries > 0
        for other in other_classes(problem.labels, 3)[row].tolist():
            objective = logits.rows([int(problem.labels[row])]) + -logits.rows([other])
            solution = model.minimize(objective, 600.0)
            x = torch.from_numpy(encoded.input.at(solution.point)).view(1, 1, 4, 4)
            f = exact.model(x)[0]
            assert solution.lower == pytest.approx((f[problem.labels[row]] - f[other]).item(), abs=1e-5)
            assert model.minimize(objective, 600.0, relaxed=True).lower <= solution.lower + 1e-6
    network.float()
    verdict = Mip(bounds=bounds)(network, problem)
    assert all(decided(verdict))
    with torch.no_grad():
        lowest = torch.stack([margins_of(network(problem.box.sample()), problem.labels) for _ in range(300)]).amin(0)
    assert (verdict.margins <= lowest + 1e-5).all()


def tiny_neurons(count: int, size: float, gain: float) -> BoundedNetwork:
    """f = (1, gain / size sum of ``count`` relu(size (x_0 - 1/2))): tiny ReLUs in front of large weights."""
    model = nn.Sequential(nn.Linear(2, count), nn.ReLU(), nn.Linear(count, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[:, 0], model[0].bias[:] = size, -size / 2
        model[2].weight[1], model[2].bias[0] = gain / size, 1.0
    return BoundedNetwork(model, (2,), 2).eval()


@pytest.mark.parametrize("size", [1.0, 1e-3, 3e-6, 1e-6, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize(("count", "gain", "robust"), [(1, 3.0, False), (50, 0.05, False), (1, 2.0, True)])
def test_the_scale_of_the_neurons_does_not_change_the_verdict(size, count, gain, robust):
    """ReLU is homogeneous. The least margin is 1 - 0.45 count gain; a solver with absolute tolerances proved 1."""
    network = tiny_neurons(count, size, gain)
    problem = Problem.of(network, torch.tensor([[0.5, 0.5]]), torch.zeros(1, dtype=torch.long), 0.45)
    found = Mip(gap=0.0)(network, problem)
    assert float(found.margins) <= 1 - 0.45 * count * gain + 1e-6
    if size >= 1e-7:
        assert found.status == (Status.VERIFIED if robust else Status.FALSIFIED,)


def test_what_the_tolerances_add_up_to_is_taken_off():
    """A ReLU's input of largest coefficient 2 fails by 4e-6 and one dropped coefficient; then weights 100 and 50."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0), model[0].bias.fill_(-1.0)
        model[2].weight.copy_(torch.tensor([[100.0], [-50.0]])), model[2].bias.zero_()
    graph = extract(model, (1,), torch.zeros(1, 1, dtype=torch.float64))
    box = Box(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    encoded = encode(graph, matrices_of(graph), intervals(graph, box, None))
    relu = 2 * FAILS + 2 * (FAILS + DROPS)
    assert encoded.errors.tolist() == pytest.approx([100 * relu, 50 * relu])
    assert encoded.least(7.0, 0, 1) == pytest.approx(7 - 150 * relu - COST * encoded.model.size, abs=1e-12)


def test_crown_does_not_change_the_verdict():
    for seed in range(4):
        network = residual(seed, nn.MaxPool2d(2))
        problem = problem_for(network, 0.04, count=3)
        assert Mip(bounds="ibp")(network, problem).status == Mip(bounds="crown")(network, problem).status


def test_known_margins_skip_classes(monkeypatch):
    network, asked = mlp(0).double(), []
    minimize = Model.minimize
    monkeypatch.setattr(Model, "minimize", lambda self, *a, **k: asked.append(a) or minimize(self, *a, **k))
    problem = problem_for(network, 0.05, count=1)
    known = torch.tensor([[1.0, -torch.inf]], dtype=torch.float64)
    Mip()(network, problem.select([0], known))
    assert len(asked) == 1
    assert Mip()(network, problem.select([0], torch.ones_like(known))).status == (Status.VERIFIED,)
    assert len(asked) == 1


def unfinished(lower: float, asked: list[bool]):
    """A solver out of time with a lower bound; on the relaxation it is as it was."""
    minimize = Model.minimize

    def run(self, objective, seconds, gap=0.0, relaxed=False):
        asked.append(relaxed)
        return minimize(self, objective, seconds, relaxed=True) if relaxed else Solution(lower, None, False)

    return run


def test_out_of_time_the_relaxation_may_still_verify(monkeypatch):
    network, asked = mlp(1), []
    problem = problem_for(network, 0.05, count=8)
    exact = Mip()(network, problem).status
    monkeypatch.setattr(Model, "minimize", unfinished(-np.inf, asked))
    relaxed = Mip(first=())(network, problem)
    assert True in asked and Status.VERIFIED in relaxed.status
    for one, other in zip(relaxed.status, exact, strict=True):
        assert one in (other, Status.UNKNOWN)


def test_out_of_time_a_bound_that_was_proven_counts(monkeypatch):
    network, asked = mlp(1), []
    problem = problem_for(network, 0.02, count=4)
    monkeypatch.setattr(Model, "minimize", unfinished(0.5, asked))
    assert set(Mip(first=())(network, problem).status) == {Status.VERIFIED}
    assert True not in asked


def test_no_time_gives_unknown():
    network = residual(0, nn.MaxPool2d(2))
    problem = problem_for(network, 0.3, count=2)
    late = Problem(**{**vars(problem), "deadline": time.monotonic()})
    assert set(Mip()(network, late).status) == {Status.UNKNOWN}
    began = time.monotonic()
    verdict = Mip(timeout=1e-6, lp_timeout=1e-6)(network, problem)
    assert set(verdict.status) == {Status.UNKNOWN} and time.monotonic() - began < 5


def test_close_calls_are_unknown():
    """f = (x, 0): the label 0 is right by 0.5 - 0.49999; below the tolerance nothing is claimed."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
    network = BoundedNetwork(nn.Sequential(model), (1,), 2).eval()
    x, labels = torch.tensor([[0.5]]), torch.tensor([0])
    assert Mip()(network, Problem.of(network, x, labels, 0.49999)).status == (Status.UNKNOWN,)
    assert Mip()(network, Problem.of(network, x, labels, 0.499)).status == (Status.VERIFIED,)
    assert Mip()(network, Problem.of(network, x, labels, 0.5)).status == (Status.FALSIFIED,)


def test_in_a_cascade_it_decides_what_bounds_leave():
    network = mlp(3, inputs=4, hidden=16)
    problem = problem_for(network, 0.2, count=12)
    stages = build_stages("ibp,crown,mip", {"mip": {"timeout": 30}})
    outcomes = [one for batch in Cascade(stages)(network, problem) for one in batch]
    assert len(outcomes) == 12 and Status.UNKNOWN not in {one.status for one in outcomes}
    assert "mip" in {one.decided_by for one in outcomes}


def test_a_layer_that_is_not_piecewise_linear_is_named():
    network = BoundedNetwork(nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 2)), (2,), 2).eval()
    with pytest.raises(UserError, match="Sigmoid"):
        Mip()(network, problem_for(network, 0.1))


@pytest.mark.parametrize("networks", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_agrees_with_branch_and_bound(networks):
    """On hundreds of small networks: wherever both decide, they agree; and both decide nearly always."""
    if "bab" not in VERIFIERS.names():
        pytest.skip("branch-and-bound is not there yet")
    bab, both = VERIFIERS.build("bab"), 0
    for seed in range(networks):
        if seed % 4 == 3:
            network = residual(seed, (None, nn.AvgPool2d(2))[seed // 4 % 2])
        else:
            network = mlp(seed, inputs=2 + seed % 4, depth=1 + seed % 3)
        problem = problem_for(network, (0.03, 0.1, 0.2)[seed % 3], count=2, seed=seed)
        one, other = Mip()(network, problem), bab(network, problem)
        for a, b in zip(one.status, other.status, strict=True):
            assert a is b or Status.UNKNOWN in (a, b)
            both += Status.UNKNOWN not in (a, b)
    assert both > 0.95 * 2 * networks
