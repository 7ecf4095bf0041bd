"""Branch-and-bound: verdicts against brute force and against each other."""

from __future__ import annotations

import time

import pytest
import torch
from instances import data, instance
from reducing import grid, mlp, pooled, problem_for

from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify import Problem, Status
from expressive_losses.verify.base import is_counterexample

COMPLETE = ("bab", "input-bab")


@torch.no_grad()
@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("seed", range(8))
def test_complete_verifiers_agree_with_brute_force(name, seed):
    """On two inputs everything is decided, and a 201 x 201 grid contradicts nothing."""
    network = mlp(seed)
    u = grid(2, 201)
    for eps in (0.05, 0.15, 0.4):
        problem = problem_for(network, eps)
        verdict = VERIFIERS.build(name)(network, problem)
        for row, status in enumerate(verdict.status):
            box, label = problem.box[row : row + 1], problem.labels[row : row + 1]
            margins = margins_of(network(box.center + box.half_width * u), label.expand(len(u)))
            assert (verdict.margins[row] <= margins.amin(0) + 1e-5).all()
            if margins.min() <= 0:
                assert status is Status.FALSIFIED
            elif status is Status.FALSIFIED:
                assert margins.min() < 0.05
                assert is_counterexample(network, box, label, verdict.witness[row : row + 1]).all()
            else:
                assert status is Status.VERIFIED


@pytest.mark.parametrize("make", [lambda seed: mlp(seed, inputs=4, width=10), pooled])
@pytest.mark.parametrize("seed", range(4))
def test_complete_verifiers_agree_with_each_other(make, seed):
    network = make(seed)
    bound = "ibp" if network.shape == (1, 2, 2) else "crown"
    statuses = []
    for eps in (0.05, 0.15, 0.4):
        problem = problem_for(network, eps)
        one = VERIFIERS.build({"name": "bab", "timeout": 600})(network, problem)
        other = VERIFIERS.build({"name": "input-bab", "bound": bound, "timeout": 600})(network, problem)
        assert one.status == other.status
        assert Status.UNKNOWN not in one.status
        statuses += one.status
    assert Status.VERIFIED in statuses


@pytest.mark.parametrize(
    "options",
    [
        {"branching": "babsr"},
        {"branching": "gap"},
        {"candidates": 3},
        {"hidden": "ibp"},
        {"iterations": 0, "root_iterations": 0},
        {"attack_steps": 0, "node_attack_steps": 0},
        {"batch": 2},
        {"hopeless": True},
    ],
)
def test_options_change_no_verdict(options):
    """Also without optimised multipliers: then leaves are left to their linear programs."""
    network = mlp(3, inputs=3)
    problem = problem_for(network, 0.2)
    expected = VERIFIERS.build("bab")(network, problem).status
    assert Status.UNKNOWN not in expected
    assert VERIFIERS.build({"name": "bab", **options})(network, problem).status == expected


def test_float64():
    network = mlp(2, dtype=torch.float64)
    verdict = VERIFIERS.build("bab")(network, problem_for(network, 0.2))
    assert Status.UNKNOWN not in verdict.status
    assert verdict.margins.dtype == torch.float64


@pytest.mark.parametrize("name", COMPLETE)
def test_a_batch_gives_what_its_images_give_alone(name):
    network = mlp(1, inputs=3)
    problem = problem_for(network, 0.2, count=6)
    together = VERIFIERS.build(name)(network, problem)
    for row in range(len(problem)):
        alone = VERIFIERS.build(name)(network, problem.select([row]))
        assert alone.status[0] is together.status[row]


def test_branch_and_bound_decides_what_alpha_crown_leaves_open():
    decided = {"alpha-crown": 0, "bab": 0}
    for seed in range(6):
        network = mlp(seed, inputs=4, width=12)
        problem = problem_for(network, 0.1)
        verdicts = {name: VERIFIERS.build(name)(network, problem) for name in decided}
        for name, verdict in verdicts.items():
            decided[name] += verdict.status.count(Status.VERIFIED)
        for weak, strong in zip(verdicts["alpha-crown"].status, verdicts["bab"].status, strict=True):
            assert weak is not Status.VERIFIED or strong is Status.VERIFIED
    assert decided["bab"] > decided["alpha-crown"]


@pytest.mark.parametrize("name", COMPLETE)
def test_a_box_of_one_point_is_decided(name):
    network = mlp(0)
    problem = problem_for(network, 0.0)
    verdict = VERIFIERS.build(name)(network, problem)
    assert set(verdict.status) == {Status.VERIFIED}
    wrong = Problem.of(network, problem.images, (problem.labels + 1) % 3, 0.0)
    assert Status.VERIFIED not in VERIFIERS.build(name)(network, wrong).status


@pytest.mark.parametrize("name", COMPLETE)
def test_limits_leave_images_unknown(name):
    """Without an attack nothing is falsified either; with too few nodes nothing hard is verified."""
    network = mlp(6, inputs=4, width=16)
    problem = problem_for(network, 0.15)
    settings = {"attack_steps": 0, "node_attack_steps": 0, "root_iterations": 0} if name == "bab" else {}
    limited = VERIFIERS.build({"name": name, "max_nodes": 1, **settings})(network, problem)
    complete = VERIFIERS.build(name)(network, problem)
    assert Status.UNKNOWN in limited.status
    assert Status.UNKNOWN not in complete.status
    for few, all_ in zip(limited.status, complete.status, strict=True):
        assert few in (Status.UNKNOWN, all_)
    quick = VERIFIERS.build({"name": name, "timeout": 1e-9, **settings})(network, problem)
    assert Status.UNKNOWN in quick.status


@pytest.mark.parametrize("name", COMPLETE)
def test_a_deadline_in_the_past_leaves_everything_unknown_at_once(name):
    network = mlp(0)
    problem = problem_for(network, 0.2, deadline=time.monotonic() - 1)
    began = time.monotonic()
    verdict = VERIFIERS.build(name)(network, problem)
    assert set(verdict.status) == {Status.UNKNOWN}
    assert (verdict.margins == -torch.inf).all()
    assert time.monotonic() - began < 0.5


def test_classes_that_are_ruled_out_are_not_searched():
    network = mlp(0)
    problem = problem_for(network, 0.05)
    known = torch.full_like(problem.margins, 1.0)
    rows = list(range(len(problem)))
    verdict = VERIFIERS.build("bab")(network, problem.select(rows, known))
    assert set(verdict.status) == {Status.VERIFIED}
    torch.testing.assert_close(verdict.margins, known)


def test_input_splitting_is_for_few_inputs():
    network = instance("mlp")
    x, labels = data(network)
    settings = {"name": "input-bab", "max_inputs": 8}
    with pytest.raises(UserError, match="16 inputs.*up to 8"):
        VERIFIERS.build(settings)(network, Problem.of(network, x, labels, 0.1))
