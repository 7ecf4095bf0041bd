"""Verifiers: sound against samples and grids; what is not proven is not verified."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from verifying import BOUNDS, cnn, mlp, problem_for, run, samples

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify import (
    Problem,
    Status,
)
from expressive_losses.verify.base import is_counterexample, verdict_of_bounds
from expressive_losses.verify.incomplete import Ibp


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("make, seed, eps", [(mlp, 0, 0.02), (mlp, 1, 0.08), (cnn, 0, 0.02), (cnn, 1, 0.08)])
def test_bounds_are_sound(name, make, seed, eps):
    network = make(seed)
    problem = problem_for(network, eps)
    verdict = VERIFIERS.build(name)(network, problem)
    with torch.no_grad():
        lowest = torch.stack([margins_of(network(x), problem.labels) for x in samples(problem.box)]).amin(0)
    assert (verdict.margins <= lowest + 1e-5).all()
    verified = torch.tensor([one is Status.VERIFIED for one in verdict.status])
    assert (lowest[verified] > 0).all()
    assert Status.VERIFIED in verdict.status or eps > 0.02  # otherwise nothing was tested
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.3])
def test_cascade_agrees_with_a_grid_on_two_inputs(eps):
    """A 101 x 101 grid over each box: no violation on it where VERIFIED, a real one where FALSIFIED."""
    network = mlp(3, inputs=2)
    problem = problem_for(network, eps, count=12)
    outcomes = run("cascade", network, problem)
    line = torch.linspace(0, 1, 101)
    grid = torch.cartesian_prod(line, line)
    for row, outcome in outcomes.items():
        lower, upper = problem.box.lower[row], problem.box.upper[row]
        with torch.no_grad():
            logits = network(lower + grid * (upper - lower))
        margins = margins_of(logits, problem.labels[row].expand(len(grid)))
        assert outcome.margin <= margins.min() + 1e-5
        if outcome.status is Status.VERIFIED:
            assert margins.min() > 0
        if outcome.status is Status.FALSIFIED:
            one = problem.select([row])
            assert is_counterexample(network, one.box, one.labels, outcome.witness[None]).all()
    assert Status.VERIFIED in {one.status for one in outcomes.values()} or eps > 0.1


@pytest.mark.parametrize("name", [name for name in VERIFIERS.names() if name != "clean"])
def test_a_box_of_one_point_is_never_falsified(name):
    network = mlp(0)
    problem = problem_for(network, eps=0.0)
    verdict = VERIFIERS.build(name)(network, problem)
    assert Status.FALSIFIED not in verdict.status
    if VERIFIERS[name].kind == "bound":
        assert set(verdict.status) == {Status.VERIFIED}
        with torch.no_grad():
            exact = margins_of(network(problem.images), problem.labels)
        torch.testing.assert_close(verdict.margins, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pgd", "attack"])
def test_attacks_find_real_counterexamples(name):
    network = mlp(0)
    problem = problem_for(network, eps=0.4)
    verdict = VERIFIERS.build(name)(network, problem)
    found = [row for row, status in enumerate(verdict.status) if status is Status.FALSIFIED]
    assert found
    with torch.no_grad():
        assert (network(verdict.witness[found]).argmax(1) != problem.labels[found]).all()
    assert problem.box[found].contains(verdict.witness[found]).all()


def test_an_images_noise_does_not_depend_on_its_batch():
    network = mlp(0)
    problem = problem_for(network, eps=0.4)
    whole = VERIFIERS.build("pgd")(network, problem).witness
    part = VERIFIERS.build("pgd")(network, problem.select([7, 2])).witness
    torch.testing.assert_close(part, whole[[7, 2]])


def test_misclassified_images_are_seen_by_no_later_stage():
    network = mlp(0)
    problem = problem_for(network, eps=0.0, count=4)
    wrong = Problem.of(network, problem.images, (problem.labels + 1) % 3, 0.0)
    outcomes = run("ibp", network, wrong)
    assert {one.status for one in outcomes.values()} == {Status.MISCLASSIFIED}
    assert {one.decided_by for one in outcomes.values()} == {"clean"}
    assert [one.prediction for one in outcomes.values()] == problem.labels.tolist()


def test_ties_and_nan_are_not_correct_predictions():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0] * 0, x[:, 0] * 0, x[:, 1] / x[:, 1] - 2], 1)  # 0, 0, -1 or NaN

    network = BoundedNetwork(Constant(), (2,), 3)
    problem = Problem.of(network, torch.tensor([[0.5, 0.5], [0.5, 0.0]]), torch.tensor([0, 0]), 0.1)
    assert VERIFIERS.build("clean")(network, problem).status == (Status.MISCLASSIFIED,) * 2


def test_two_bounds_together_verify_what_neither_does():
    """Margins (1, -1) then (-2, 3): the elementwise maximum (1, 3) is positive."""
    network = mlp(0)
    problem = problem_for(network, eps=0.1, count=1)
    first = verdict_of_bounds(problem, torch.tensor([[1.0, -1.0]]), 0.0)
    assert first.status == (Status.UNKNOWN,)
    second = verdict_of_bounds(problem.select([0], first.margins), torch.tensor([[-2.0, 3.0]]), 0.0)
    assert second.status == (Status.VERIFIED,)
    assert second.margins.tolist() == [[1.0, 3.0]]
    assert second.worst.tolist() == [1.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_verified(bad):
    problem = problem_for(mlp(0), eps=0.1, count=1)
    verdict = verdict_of_bounds(problem, torch.tensor([[1.0, bad]]), 0.0)
    assert verdict.status == (Status.UNKNOWN,)
    assert verdict.margins.tolist() == [[1.0, -torch.inf]]


def test_the_margin_must_exceed_the_tolerance():
    problem = problem_for(mlp(0), eps=0.1, count=3)
    margins = torch.tensor([[0.5, 1.0], [0.6, 1.0], [0.0, 1.0]])
    expected = (Status.UNKNOWN, Status.VERIFIED, Status.UNKNOWN)
    assert verdict_of_bounds(problem, margins, 0.5).status == expected
    assert verdict_of_bounds(problem, margins, 0.0).status[2] is Status.UNKNOWN  # zero is not positive


def test_a_nan_network_verifies_nothing():
    network = mlp(0)
    problem = problem_for(network, eps=0.01)
    network.model[2].weight.data[0, 0] = torch.nan
    for name in BOUNDS:
        verdict = VERIFIERS.build(name)(network, problem)
        assert set(verdict.status) == {Status.UNKNOWN}
        assert not verdict.margins.isnan().any()


def test_float64_networks_are_verified_in_float64():
    network = mlp(0).double()
    verdict = Ibp()(network, problem_for(network, 0.01))
    assert verdict.margins.dtype == torch.float64


def test_golden_margins_pass_through_unchanged(golden):
    verdict = Ibp()(golden.network(), Problem.of(golden.network(), golden.x, golden.labels, golden.eps))
    torch.testing.assert_close(verdict.margins, golden["A.eval.ibp_lb"], rtol=1e-4, atol=1e-4)
