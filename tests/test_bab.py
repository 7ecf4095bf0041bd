"""Branch-and-bound: bounds at the nodes against dense grids, verdicts against brute force and against each other."""

from __future__ import annotations

import time

import pytest
import torch
from test_soundness import CLASSES, INSTANCES, data, instance
from torch import nn

from expressive_losses.bounds import BoundedNetwork, beta_crown
from expressive_losses.bounds.beta_crown import Dual, Forms, Neurons, evaluate, lower_bound, optimise, relax
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import LayerGraph, without_max_pool
from expressive_losses.bounds.reduction import Reduced, Tightening, TooManyNeurons, reduce, stack
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of, specification
from expressive_losses.verify import Problem, Status
from expressive_losses.verify.base import is_counterexample
from expressive_losses.verify.branching import choose, score
from expressive_losses.verify.leaf import solve_leaf

CROWN = Tightening()
COMPLETE = ("bab", "input-bab")


def mlp(seed: int, inputs: int = 2, width: int = 8, dtype=torch.float32) -> BoundedNetwork:
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
    for layer in layers[::2]:
        layer.weight.data.mul_(1.5)
    return BoundedNetwork(nn.Sequential(*layers), (inputs,), 3, (0.4,), (0.3,)).to(dtype).eval()


def pooled(seed: int) -> BoundedNetwork:
    """Max pooling and a residual sum, on four inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 3, 2, padding=1), nn.MaxPool2d(2, 1)
            self.mix, self.last = nn.Conv2d(3, 3, 1), nn.Linear(12, 3)

        def forward(self, x):
            h = self.pool(self.conv(x))
            return self.last((h + self.mix(h).relu()).relu().flatten(1))

    torch.manual_seed(seed)
    return BoundedNetwork(Model(), (1, 2, 2), 3).eval()


def problem_for(network: BoundedNetwork, eps: float, count: int = 8, **fields) -> Problem:
    """Random images, labelled as the network sees them."""
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(5)).to(network.mean)
    with torch.no_grad():
        return Problem.of(network, x, network(x).argmax(1), eps, **fields)


def grid(dimensions: int, points: int) -> torch.Tensor:
    """Points of [-1, 1]^D, corners included."""
    line = torch.linspace(-1, 1, points)
    return torch.cartesian_prod(*[line] * dimensions).view(-1, dimensions)


@torch.no_grad()
def reduced(network, box: Box, labels, tightening: Tightening = CROWN) -> tuple[LayerGraph, Reduced]:
    graph = without_max_pool(extract(network.model, network.shape, network.mean))
    normalised = Box(network.normalize(box.lower), network.normalize(box.upper))
    matrices = specification(labels, network.classes, network.mean.dtype)
    rows = range(len(labels))
    return graph, stack([reduce(graph, normalised[r : r + 1], matrices[r], tightening) for r in rows])


def pre_activations(graph: LayerGraph, one: Reduced, x: torch.Tensor) -> torch.Tensor:
    """z of the unstable neurons at normalised inputs, by a plain forward pass through the layers; (N, U)."""
    values = graph.values(x)
    sources = [values[graph.layers[at].inputs[0]].flatten(1) for at in graph.relus]
    columns = [sources[block][:, index] for block, index in one.places[0].tolist()]
    return torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0)


def random_splits(count: int, one: Reduced, seed: int) -> torch.Tensor:
    """Some neurons split at random, more and more from sub-problem to sub-problem; (1, N, U) int8."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, count, one.neurons.count)
    chance = torch.linspace(0, 1, count).view(1, -1, 1)
    split = torch.rand(size, generator=generator) < chance
    sign = torch.where(torch.rand(size, generator=generator) < 0.5, 1, -1)
    return torch.where(split, sign, 0).to(torch.int8)


@torch.no_grad()
def largest_excess(seeds: range, inputs: int = 2) -> float:
    """By how much any node bound exceeds the smallest value on the grid points that satisfy its splits."""
    worst = -torch.inf
    u = grid(inputs, 101 if inputs == 2 else 23)
    for seed in seeds:
        network = mlp(seed, inputs)
        problem = problem_for(network, 0.3, count=1)
        box = problem.box
        graph, one = reduced(network, box, problem.labels)
        x = box.center + box.half_width * u
        z = pre_activations(graph, one, network.normalize(x))
        values = margins_of(network(x), problem.labels.expand(len(x)))
        sign = random_splits(24, one, seed)
        property_ = torch.arange(24).remainder(2).view(1, -1)
        forms = one.outputs.pick(property_)
        found = optimise(one.neurons, forms, sign, Dual.start(one.neurons, 24), 40, lr=0.3)
        for node in range(24):
            inside = (sign[0, node] * z >= 0).all(1)
            if inside.any():
                lowest = values[inside, property_[0, node]].min()
                worst = max(worst, (found.lower[0, node] - lowest).item())
    return worst


# -- the reduced network -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("name", [*INSTANCES, "pooled"])
def test_the_reduced_network_equals_the_network_on_its_box(name, eps):
    network = pooled(0) if name == "pooled" else instance(name)
    x, labels = data(network)
    labels = labels % network.classes
    box = Box.around(x, eps)
    _, net = reduced(network, box, labels, Tightening(iterations=2))
    count, generator = network.classes - 1, torch.Generator().manual_seed(1)
    u = 2 * torch.rand(len(x), count, x[0].numel(), generator=generator) - 1
    values = evaluate(net.neurons, net.outputs, u)
    for j in range(count):
        expected = margins_of(network(box.center + box.half_width * u[:, j].view_as(x)), labels)[:, j]
        torch.testing.assert_close(values[:, j], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", ["crown_ibp", "crown", "alpha_crown"])
@pytest.mark.parametrize("name", INSTANCES)
def test_without_splits_the_bounds_are_those_of_auto_lirpa(name, method):
    """Or tighter by a little: the hidden bounds here are the better of IBP and CROWN, neuron by neuron."""
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.05)
    how = Tightening("ibp") if method == "crown_ibp" else Tightening(iterations=0)
    _, net = reduced(network, box, labels, how)
    count = CLASSES - 1
    sign = torch.zeros(len(x), count, net.neurons.count)
    steps = 20 if method == "alpha_crown" else 0
    found = optimise(net.neurons, net.outputs, sign, Dual.start(net.neurons, count), steps, lr=0.5)
    expected = network.margins(box, labels, method)
    torch.testing.assert_close(found.lower, expected, rtol=1e-4, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", INSTANCES)
def test_interval_margins_are_those_of_auto_lirpa(name):
    network = instance(name)
    x, labels = data(network)
    box = Box.around(x, 0.05)
    graph = extract(network.model, network.shape, x)
    boxes = graph.intervals(Box(network.normalize(box.lower), network.normalize(box.upper)))
    last, before = graph.layers[-1], boxes[graph.layers[-1].inputs[0]]
    a = specification(labels, CLASSES)
    merged = last.backward(a)
    center = (merged * before.center.unsqueeze(1)).flatten(2).sum(2)
    radius = (merged.abs() * before.half_width.unsqueeze(1)).flatten(2).sum(2)
    found = center + last.constant(a) - radius
    torch.testing.assert_close(found, network.margins(box, labels, "ibp"), rtol=1e-4, atol=1e-4)


def test_images_are_left_out_when_they_have_too_many_unstable_neurons():
    network = mlp(0)
    problem = problem_for(network, 0.3, count=1)
    graph = extract(network.model, network.shape, network.mean)
    box = Box(network.normalize(problem.box.lower), network.normalize(problem.box.upper))
    with pytest.raises(TooManyNeurons):
        reduce(graph, box, specification(problem.labels, 3)[0], most=1)
    verdict = VERIFIERS.build({"name": "bab", "max_neurons": 1})(network, problem)
    assert verdict.status == (Status.UNKNOWN,)


# -- node bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [2, 3])
def test_node_bounds_hold_on_a_dense_grid(inputs):
    assert largest_excess(range(12), inputs) <= 1e-5


def test_the_grid_notices_a_wrong_sign_of_beta(monkeypatch):
    """The constraint of an active split is z >= 0, so its multiplier is subtracted; added, bounds are not sound."""
    true = beta_crown.lower_bound

    def flipped(neurons, forms, relaxation, sign, dual):
        return true(neurons, forms, relaxation, -sign, dual)

    monkeypatch.setattr(beta_crown, "lower_bound", flipped)
    assert largest_excess(range(4)) > 1e-2


@torch.no_grad()
def test_gradients_are_those_of_finite_differences():
    network = mlp(1, dtype=torch.float64)
    problem = problem_for(network, 0.3, count=1)
    _, one = reduced(network, problem.box, problem.labels)
    sign = random_splits(6, one, 2).double()
    generator = torch.Generator().manual_seed(3)
    alpha, beta = (torch.rand(sign.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    forms = one.outputs.pick(torch.zeros(1, 6, dtype=torch.long))
    relaxation, step = relax(one.neurons, sign), 1e-7

    def bound(dual: Dual) -> torch.Tensor:
        return lower_bound(one.neurons, forms, relaxation, sign, dual)[0].lower

    _, gradient = lower_bound(one.neurons, forms, relaxation, sign, Dual(alpha, beta))
    for neuron in range(one.neurons.count):
        moved = torch.zeros_like(alpha)
        moved[..., neuron] = step
        by_alpha = (bound(Dual(alpha + moved, beta)) - bound(Dual(alpha - moved, beta))) / (2 * step)
        by_beta = (bound(Dual(alpha, beta + moved)) - bound(Dual(alpha, beta - moved))) / (2 * step)
        torch.testing.assert_close(gradient.alpha[..., neuron], by_alpha, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.beta[..., neuron], by_beta, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_beta_by_hand():
    """min of y - 2u, z = u, y = relu(z), u in [-1, 1]: split z <= 0 it is 0 (y = 0, u = 0), which needs beta = 2."""
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    neurons = Neurons(one, zero, zero[0], -one[0], one[0], (1,))
    forms = Forms(-2 * one, one, zero[0])
    sign = -one
    without = lower_bound(neurons, forms, relax(neurons, sign), sign, Dual(zero, zero))[0]
    assert without.lower.item() == pytest.approx(-2)
    assert lower_bound(neurons, forms, relax(neurons, sign), sign, Dual(zero, 2 * one))[
        0
    ].lower.item() == pytest.approx(0)
    found = optimise(neurons, forms, sign, Dual(zero, zero), 200)
    assert found.lower.item() == pytest.approx(0, abs=1e-2)


@torch.no_grad()
def test_an_empty_subproblem_is_proven():
    """z1 = u, z2 = u + 2 with |u| <= 1: z2 <= 0 has no input, so the bound grows without limit."""
    one = torch.ones(1, 1, 1)
    neurons = Neurons(
        torch.ones(1, 2, 1), torch.zeros(1, 2, 2), torch.tensor([[0.0, 2.0]]),
        torch.tensor([[-1.0, -0.5]]), torch.tensor([[1.0, 3.0]]), (2,),
    )  # fmt: skip
    forms = Forms(one, torch.zeros(1, 1, 2), -one[0])
    sign = torch.tensor([[[1.0, -1.0]]])
    start = Dual(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    assert optimise(neurons, forms, sign, start, 100).lower.item() > 1
    assert solve_leaf(neurons, forms, sign[0, 0]).lower == torch.inf


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_leaves_are_exact(seed):
    """With every sign given, the linear program's bound is the grid's minimum over that cell, or just below."""
    network = mlp(seed, dtype=torch.float64)
    problem = problem_for(network, 0.3, count=1)
    box = problem.box
    graph, one = reduced(network, box, problem.labels)
    u = grid(2, 301).double()
    z = pre_activations(graph, one, network.normalize(box.center + box.half_width * u))
    image = Forms(one.outputs.inputs[:, :1], one.outputs.neurons[:, :1], one.outputs.constant[:, :1])
    values = evaluate(one.neurons, Forms(*(t.expand(1, len(u), *t.shape[2:]) for t in vars(image).values())), u[None])[
        0
    ]
    cells, counts = (z > 0).unique(dim=0, return_counts=True)
    for cell in cells[counts > 1500]:
        inside = ((z > 0) == cell).all(1)
        leaf = solve_leaf(one.neurons, image, torch.where(cell, 1, -1))
        assert leaf.lower <= values[inside].min() + 1e-9
        assert leaf.lower >= values[inside].min() - 0.1
        at_point = evaluate(one.neurons, image, leaf.point.view(1, 1, -1)).item()
        assert at_point == pytest.approx(leaf.lower, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["upb", "babsr", "gap"])
def test_branching_picks_neurons_that_can_be_split(name):
    network = mlp(0)
    problem = problem_for(network, 0.3, count=1)
    _, one = reduced(network, problem.box, problem.labels)
    sign = random_splits(12, one, 0)
    forms = one.outputs.pick(torch.zeros(1, 12, dtype=torch.long))
    found = optimise(one.neurons, forms, sign, Dual.start(one.neurons, 12), 5)
    assert (score(name, one.neurons, relax(one.neurons, sign), found) == -torch.inf).equal(sign != 0)
    for candidates in (1, 3, 100):
        index = choose(name, candidates, one.neurons, forms, sign, found, 0.0)
        full = (sign != 0).all(2)
        assert (index[full] == -1).all()
        assert (sign.gather(2, index.clamp_min(0).unsqueeze(2)).squeeze(2)[~full] == 0).all()


# -- verdicts ------------------------------------------------------------------------------------------------------


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
