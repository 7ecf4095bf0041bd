"""float32 finds, float64 proves: networks whose float32 bounds are wrong by more than any estimate are not verified."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from reducing import mlp, problem_for
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.beta_crown import Forms, Neurons
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify import Cascade, Problem, Status, bab, build_stages
from expressive_losses.verify.base import Verdict
from expressive_losses.verify.evaluation import evaluation_copy
from expressive_losses.verify.leaf import solve_leaf
from expressive_losses.verify.precise import with_second_look

LABEL = torch.zeros(1, dtype=torch.long)
SIDE, EPS = 32, 8 / 255
PROVING = [name for name in VERIFIERS.names() if VERIFIERS[name].kind in ("bound", "complete")]


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    layer.weight.data = torch.tensor(weight)
    if bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def of_one_colour(share: float) -> tuple[BoundedNetwork, Problem]:
    """f = (min(1, h), 0), h = sign (w x - b) with equal weights w, and x of one gray.

    All additions of w x err in one direction, by some 20 units roundoff: more than one for each sum. Sign and gray are
    those with the largest error in favour of the margin, whose minimum over the box is ``share`` times that error.
    """
    count = SIDE * SIDE
    weight = torch.full((1, count), 2e4 / count / 3)
    total = float(weight.double().sum())

    def error(sign: int, gray: int) -> float:
        center, radius = (torch.full((1, count), value) for value in (gray / 255, EPS))
        found = [nn.functional.linear(x, weight).double() - x.double() @ weight.double().T for x in (center, radius)]
        return (sign * found[0] - found[1]).item()

    sign, gray = max(itertools.product((1, -1), range(40, 216)), key=lambda one: error(*one))
    hidden, margin = nn.Linear(count, 2), share * error(sign, gray)
    hidden.weight.data = torch.cat([-sign * weight, 0 * weight])  # relu(1 - h)
    hidden.bias.data = torch.tensor([1.0 + sign * total * (gray / 255 - sign * EPS) - margin, 0.0])
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), linear([[-1.0, 0.0], [0.0, 1.0]], [1.0, 0.0]))
    network = BoundedNetwork(model, (1, SIDE, SIDE), 2).eval()
    x = torch.full((1, 1, SIDE, SIDE), float(gray)) / 255
    return network, Problem.of(network, x, LABEL, EPS)


def smallest_margin(network: BoundedNetwork, problem: Problem, sign: int) -> float:
    """Of networks of one neuron that matters: at the lower corner, or the upper."""
    exact = evaluation_copy(network, "cpu", torch.float64)
    corner = problem.box.lower if sign > 0 else problem.box.upper
    with torch.no_grad():
        return margins_of(exact(corner.double()), LABEL).item()


@pytest.mark.parametrize("name", [name for name in PROVING if name != "input-bab"])
def test_errors_that_do_not_cancel_prove_nothing(name):
    """The network misclassifies a corner of the box by a third of float32's error, which is in favour of the margin."""
    network, problem = of_one_colour(-0.3)
    assert min(smallest_margin(network, problem, sign) for sign in (1, -1)) < -1e-3
    assert VERIFIERS.build(name)(network, problem).status != (Status.VERIFIED,)
    network, problem = of_one_colour(3.0)
    assert VERIFIERS.build(name)(network, problem).status == (Status.VERIFIED,)


@pytest.mark.parametrize("last", ["bab", "mip"])
def test_what_float32_says_of_a_class_is_no_fact_for_a_later_stage(last):
    """IBP has a margin above the tolerance, in float32, which float64 does not confirm."""
    network, problem = of_one_colour(-0.3)
    cascade = Cascade(build_stages(f"clean,ibp,{last}", {last: {"timeout": 5.0}}))
    outcomes = [outcome for some in cascade(network, problem) for outcome in some]
    assert [outcome.status for outcome in outcomes] != [Status.VERIFIED]
    assert outcomes[0].margin > 1e-4 or outcomes[0].status is Status.FALSIFIED


@pytest.mark.parametrize("eps, status", [(0.001, Status.VERIFIED), (0.9, Status.UNKNOWN)])
def test_the_class_that_a_bound_leaves_may_be_that_of_an_earlier_stage(eps, status):
    """In float64 the stage's own bound excludes one class; interval bounds exclude the other, or do not."""
    network = mlp(0)
    problem = problem_for(network, eps, count=1)
    found = Verdict((Status.UNKNOWN,), torch.ones_like(problem.margins))

    def half(network, box, labels):
        return torch.tensor([[1.0, -1.0]], dtype=torch.float64)

    assert with_second_look(network, problem, found, 1e-4, half).status == (status,)


def test_float32_alone_would_be_fooled():
    """As it was when one unit of roundoff was allowed for each sum: the bound is above that, too."""
    network, problem = of_one_colour(-0.3)
    margin = VERIFIERS.build("ibp")(network, replace(problem, rounding=None)).margins.item()
    assert margin > network.rounding().usual(problem.box, torch.float32).item() > 1e-4


@pytest.mark.parametrize("name", [name for name in PROVING if name not in ("bab", "mip", "input-bab")])
def test_a_network_whose_rounding_is_unknown_is_proven_in_float64(name):
    """LeakyReLU is no layer of the rounding analysis. Both halves of the hidden layer cancel, but for a constant."""
    verified = {-0.05: 0, 0.05: 0}
    for seed in range(8):
        noise = torch.Generator().manual_seed(seed)
        half, last = torch.rand(32, 64, generator=noise) * 1e4, torch.rand(1, 32, generator=noise)
        first, second = nn.Linear(64, 64), nn.Linear(64, 2)
        first.weight.data, first.bias.data = torch.cat([half, half]), torch.cat([torch.ones(32), torch.zeros(32)]) * 1e3
        second.weight.data = torch.cat([torch.cat([last, -last], 1), torch.zeros(1, 64)])
        second.bias.data = torch.zeros(2)
        network = BoundedNetwork(nn.Sequential(first, nn.LeakyReLU(0.1), second), (64,), 2).eval()
        x = torch.rand(1, 64, generator=noise) * 0.5 + 0.25
        assert network.rounding().unknown
        for margin in verified:
            exact = evaluation_copy(network, "cpu", torch.float64)
            with torch.no_grad():
                second.bias.data[0] += margin - float(exact(x.double())[0, 0])
                exact = evaluation_copy(network, "cpu", torch.float64)
                true = margins_of(exact(x.double()), LABEL).item()
            found = VERIFIERS.build(name)(network, Problem.of(network, x, LABEL, 0.0))
            assert not (true < 0 and found.status == (Status.VERIFIED,))
            verified[margin] += found.status == (Status.VERIFIED,)
    assert verified[0.05] > 4 or name == "ibp"  # which the box of float64, 2^-23 wider, is too wide for


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "bab", "input-bab"])
def test_what_underflows_proves_nothing(name):
    """f_0 = 0.55 - x by way of weights of 1e-23 twice and 1e23 twice; float32 has 0.55."""
    layers = [linear([[1e-23]]), nn.ReLU(), linear([[1e-23]]), nn.ReLU(), linear([[1e23]]), nn.ReLU()]
    network = BoundedNetwork(nn.Sequential(*layers, linear([[-1e23], [0.0]], [0.55, 0.0])), (1,), 2).eval()
    problem = Problem.of(network, torch.full((1, 1), 0.5), LABEL, 0.1)
    soon = {"timeout": 1.0, "max_nodes": 256} if VERIFIERS[name].kind == "complete" else {}
    assert VERIFIERS.build({"name": name, **soon})(network, problem).status != (Status.VERIFIED,)


@pytest.mark.parametrize("power", [0, 30, 66, 70, 100])
@pytest.mark.parametrize("branching", ["upb", "babsr", "gap"])
def test_what_overflows_in_the_search_is_no_leaf(power, branching):
    """f_0 - f_1 = 0.1 - 20 tent(x), below 0 at 0.53; the products of bounds on hidden neurons overflow float32."""
    size = 2.0**power
    hidden = linear([[size]] * 3, [-0.52 * size, -0.53 * size, -0.54 * size])
    last = linear([[-20 / size, 40 / size, -20 / size], [0.0, 0.0, 0.0]], [0.1, 0.0])
    network = BoundedNetwork(nn.Sequential(hidden, nn.ReLU(), last), (1,), 2).eval()
    problem = Problem.of(network, torch.full((1, 1), 0.5), LABEL, 0.1)
    how = {"name": "bab", "timeout": 2.0, "branching": branching, "attack_steps": 0, "node_attack_steps": 0}
    assert VERIFIERS.build(how)(network, problem).status != (Status.VERIFIED,)


def test_a_leaf_has_every_unstable_neuron_split():
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    neurons = Neurons(one, zero, zero[0], -one[0], one[0], (1,))  # z = u
    form = Forms(zero, -one, 0.5 * one[0])  # 0.5 - relu(z) >= -0.5
    assert solve_leaf(neurons, form, torch.tensor([0])).lower == -torch.inf
    assert solve_leaf(neurons, form, torch.tensor([1])).lower == pytest.approx(-0.5)
    assert solve_leaf(neurons, form, torch.tensor([-1])).lower == pytest.approx(0.5)


def test_branch_and_bound_closes_nothing_that_only_its_search_believes(monkeypatch):
    """A search whose bounds are 1 too high finds the same as an honest one, with more splits."""
    true = bab.optimise

    def boastful(*arguments, **options):
        found = true(*arguments, **options)
        return replace(found, lower=found.lower + 1)

    networks = [(network := mlp(seed, inputs=3), problem_for(network, 0.2)) for seed in range(3)]
    expected = [VERIFIERS.build("bab")(*one).status for one in networks]
    assert {Status.VERIFIED, Status.FALSIFIED} <= {status for row in expected for status in row}
    monkeypatch.setattr(bab, "optimise", boastful)
    assert [VERIFIERS.build("bab")(*one).status for one in networks] == expected
    monkeypatch.setattr(bab, "in_float64", lambda network, problem: (network, problem))
    assert [VERIFIERS.build("bab")(*one).status for one in networks] != expected, "nothing was confirmed"
