"""The reduced network against the network, and beta-CROWN's bounds against dense grids, float64 and by hand."""

from __future__ import annotations

import pytest
import torch
from instances import CLASSES, INSTANCES, data, instance
from reducing import grid, mlp, pooled, pre_activations, problem_for, random_splits, reduced

from expressive_losses.bounds import beta_crown
from expressive_losses.bounds.beta_crown import Dual, Forms, Neurons, evaluate, lower_bound, optimise, relax
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.reduction import Tightening, TooManyNeurons, reduce
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of, specification
from expressive_losses.verify import Status
from expressive_losses.verify.branching import choose, score
from expressive_losses.verify.leaf import solve_leaf


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
    """min of y - 2u, z = u, y = relu(z), u in [-1, 1]: split z <= 0 it is 0 (y = 0, u = 0), which needs beta = 2.

    What rounding can be in 2 z is taken off: u and its half-width are rounded, so 2 times 2 unit roundoffs.
    """
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    neurons = Neurons(one, zero, zero[0], -one[0], one[0], (1,))
    forms = Forms(-2 * one, one, zero[0])
    sign = -one
    without = lower_bound(neurons, forms, relax(neurons, sign), sign, Dual(zero, zero))[0]
    assert without.lower.item() == pytest.approx(-2)
    best = lower_bound(neurons, forms, relax(neurons, sign), sign, Dual(zero, 2 * one))[0]
    assert best.lower.item() == -4 * torch.finfo(torch.float32).eps
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


def cancelling(seed: int) -> tuple[Neurons, Forms, Dual]:
    """Splits z1 >= 0 and z2 >= 0 where z2 = -z1: their multipliers add up large terms to nothing."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(1, 1, 50, generator=generator), torch.randn(1, 1, generator=generator)
    size, multiplier = (10 ** (4 * torch.rand(2, generator=generator))).tolist()
    wide = torch.full((1, 2), size * 100)
    neurons = Neurons(
        size * torch.cat([weight, -weight], 1),
        torch.zeros(1, 2, 2),
        size * torch.cat([bias, -bias], 1),
        -wide,
        wide,
        (2,),
    )
    forms = Forms(1e-3 * torch.randn(1, 1, 50, generator=generator), torch.zeros(1, 1, 2), torch.zeros(1, 1))
    beta = multiplier * torch.tensor([[[1.0, 1.0 + 1e-7]]])
    return neurons, forms, Dual(torch.zeros(1, 1, 2), beta)


def rounding_in_favour(neurons: Neurons, forms: Forms, dual: Dual) -> float:
    """Return by how much float32 puts the bound, of positive splits, above what float64 gives for the same numbers."""
    sign = torch.ones(1, 1, neurons.count)

    def double(part):
        return type(part)(*(t.double() if isinstance(t, torch.Tensor) else t for t in vars(part).values()))

    found = lower_bound(neurons, forms, relax(neurons, sign), sign, dual)[0]
    fields = (neurons.inputs, neurons.earlier, neurons.bias, neurons.lower, neurons.upper)
    exact = Neurons(*(t.double() for t in fields), neurons.blocks)
    best = lower_bound(exact, double(forms), relax(exact, sign.double()), sign.double(), double(dual))[0]
    return (found.lower.double() - best.lower).item()


@torch.no_grad()
def test_what_cancelling_multipliers_leave_of_rounding_is_taken_off(monkeypatch):
    assert max(rounding_in_favour(*cancelling(seed)) for seed in range(200)) <= 0
    monkeypatch.setattr(Neurons, "rounding", property(lambda self: torch.zeros_like(self.bias)))
    assert max(rounding_in_favour(*cancelling(seed)) for seed in range(200)) > 1e-2


@pytest.mark.parametrize("power", [-100, -70, 30, 100])
def test_the_relaxation_scales_with_the_neuron(power):
    """Bit by bit: l u alone would underflow at 2^-70, or overflow at 2^70, where -l u / (u - l) does not."""
    bounds = torch.rand(2, 1, 50, generator=torch.Generator().manual_seed(0))
    sign, one = torch.zeros(1, 1, 50), torch.zeros(1, 50, 50)

    def relaxed(size: float):
        return relax(Neurons(one, one, one[:, 0], -size * bounds[0], size * bounds[1], (50,)), sign)

    size, plain, scaled = 2.0**power, relaxed(1.0), relaxed(2.0**power)
    assert scaled.up.equal(plain.up) and scaled.shift.equal(size * plain.shift)


@torch.no_grad()
def test_the_rounding_of_neurons_by_hand():
    """z1 = 3 u1 - u2 + 1, z2 = u1 + 2 y1 - 4, abs(y1) <= 5: 2 (3 + 1) + 1 = 9 and 2 + 4 + 2 (9 + 5) = 34 roundoffs."""
    inputs, earlier = torch.tensor([[[3.0, -1.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    bias, lower, upper = torch.tensor([[[1.0, -4.0]], [[-3.0, -5.0]], [[5.0, 7.0]]])
    neurons = Neurons(inputs, earlier, bias, lower, upper, (1, 1))
    torch.testing.assert_close(neurons.rounding / torch.finfo(torch.float32).eps, torch.tensor([[9.0, 34.0]]))


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
