"""AdvIBP on problems of two parameters, worked by hand; FOSC, c_t, and exact resume.

The problem: L_adv = a . theta and L_ibp = b . theta + c have the constant gradients a and b, so after any number of
steps the corrected moments are m = a, b and v = |a|, |b|, and the weights are what algorithm 1 prints for these.
"""

import json
import math

import pytest
import torch
from torch.nn import Parameter

from expressive_losses import checkpoint, experiment
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import load, parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.losses.adv_ibp import first_order_stationarity
from expressive_losses.registry import LOSSES
from expressive_losses.step import Radii, forward_batch
from expressive_losses.types import BoundedBatch, Box, Clock, Progress

CPU = torch.device("cpu")
A = (3.0, 4.0)  # norm 5
AGREEING = (0.0, 2.0)  # norm 2; product 8
OPPOSED = (-2.0, 0.0)  # norm 2; product -6


class Problem:
    """theta = 0, gradients a and b, one image x = 0.5 in [0.4, 0.6] at which FOSC is 0.1 |slope|."""

    def __init__(self, b, slope: float = 1.0, offset: float = 1.5, **fields) -> None:
        self.a, self.b, self.offset, self.slope = torch.tensor(A), torch.tensor(b), offset, slope
        self.loss = LOSSES.build({"name": "adv_ibp", "fosc_max": 0.5, **fields})
        self.theta = Parameter(torch.zeros(2))
        self.memory = self.loss.memory([self.theta])

    def step(self, now: Progress | None = None, a=None, **added) -> dict[str, float]:
        """Do one backward; return what is logged. During the ramp, c_t = c_max."""
        x_adv = torch.full((1, 1), 0.5, requires_grad=True)
        attacked = Box(torch.full((1, 1), 0.4), torch.full((1, 1), 0.6))
        now = now or Progress(0.5, 0, Clock(1, 10), 5)
        batch = BoundedBatch(torch.tensor([0]), scheduled=self.loss.scheduled(now), x_adv=x_adv, attacked=attacked)
        adversarial = (self.a if a is None else torch.tensor(a)) @ self.theta + self.slope * x_adv.sum()
        verified = self.b @ self.theta + self.offset
        terms = {"adv_loss": adversarial, "ibp_loss": verified, "loss": adversarial + verified}
        terms |= added
        terms["total"] = sum(terms[name] for name in ("loss", *added))
        self.theta.grad = None
        logged = self.loss.backward(batch, terms, [self.theta], self.memory)
        return {name: float(value) for name, value in logged.items()}

    def second(self, **options) -> dict[str, float]:
        self.step()
        return self.step(**options)


def kappas(logged) -> list[float]:
    return [logged[f"kappa_{name}"] for name in ("adv", "ibp", "reg")]


def cases(logged) -> list[float]:
    return [logged[name] for name in ("agree", "prefer_adv", "prefer_ibp")]


def gradient(kappa, b, offset=1.5) -> torch.Tensor:
    return kappa[0] * torch.tensor(A) + (kappa[1] + 2 * kappa[2] * offset) * torch.tensor(b)


def test_the_first_step_has_no_moments():
    problem = Problem(OPPOSED)
    logged = problem.step()
    assert kappas(logged) == [1, 1, 0]
    assert cases(logged) == [0, 0, 0]
    torch.testing.assert_close(problem.theta.grad, torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize(
    ("bisector", "gamma"),
    [
        # m1 + m2 = (3, 6): half its norm
        ("printed", math.sqrt(45) / 2),
        # d = (3, 4)/5 + (0, 2)/2 = (0.6, 1.8), |d| = sqrt(3.6); <(3, 6), d> = 12.6
        ("normalized", 12.6 / math.sqrt(3.6) / 2),
    ],
)
def test_case_a_along_the_bisector(bisector, gamma):
    problem = Problem(AGREEING, bisector=bisector)
    logged = problem.second()
    assert cases(logged) == [1, 0, 0]
    assert kappas(logged) == pytest.approx([gamma / 5, gamma / 2, 0])
    torch.testing.assert_close(problem.theta.grad, gradient(kappas(logged), AGREEING))
    # the direction is the bisector: the same angle to both
    direction = problem.theta.grad / problem.theta.grad.norm()
    assert float(direction @ problem.a) / 5 == pytest.approx(float(direction @ problem.b) / 2)


@pytest.mark.parametrize("projection", ["norm", "moment"])
def test_case_b_strong_attack_keeps_the_adversarial_gradient(projection):
    """-<m1, m2> / v2^2 = 6 / 4: what is left of a is perpendicular to b."""
    problem = Problem(OPPOSED, projection=projection)
    logged = problem.second()
    assert logged["fosc"] == pytest.approx(0.1)
    assert cases(logged) == [0, 1, 0]
    assert kappas(logged) == pytest.approx([1, 1.5, 0])
    torch.testing.assert_close(problem.theta.grad, torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize("projection", ["norm", "moment"])
def test_case_c_weak_attack_keeps_the_verified_gradient(projection):
    """-<m1, m2> / v1^2 = 6 / 25, and 1/2 L_ibp^2 adds L_ibp times the gradient of L_ibp."""
    problem = Problem(OPPOSED, slope=6.0, projection=projection)  # FOSC 0.6 > 0.5
    logged = problem.second()
    assert cases(logged) == [0, 0, 1]
    assert kappas(logged) == pytest.approx([0.24, 1, 0.5])
    torch.testing.assert_close(problem.theta.grad, torch.tensor([0.24 * 3 - (1 + 1.5) * 2, 0.24 * 4]))


@pytest.mark.parametrize(
    ("b", "slope", "case", "kappa"),
    [
        ((-4.0, 3.0), 1.0, [0, 1, 0], [1, 0, 0]),  # product 0 counts as conflict: nothing to project
        ((-4.0, 3.0), 6.0, [0, 0, 1], [0, 1, 0.5]),
        ((-3.5, 2.75), 1.0, [1, 0, 0], None),  # product 0.5: they agree
        ((-3.5, 2.75), 6.0, [1, 0, 0], None),
        ((-3.0, 0.0), 1.0, [0, 1, 0], [1, 1, 0]),  # 9 / 3^2
        ((-3.0, 0.0), 6.0, [0, 0, 1], [9 / 25, 1, 0.5]),
    ],
)
def test_cases_at_their_limits(b, slope, case, kappa):
    logged = Problem(b, slope=slope).second()
    assert cases(logged) == case
    if kappa is not None:
        assert kappas(logged) == pytest.approx(kappa)


def test_an_attack_whose_fosc_is_the_threshold_is_strong():
    problem = Problem(OPPOSED)
    problem.step()
    _, case = problem.loss.kappas(problem.memory, torch.tensor(0.5), 0.5)
    assert case.tolist() == [0, 1, 0]


def test_the_bisector_where_the_verified_gradient_is_the_longer_one():
    """m1 + m2 = (3, 14): half its norm, along it."""
    logged = Problem((0.0, 10.0)).second()
    assert kappas(logged) == pytest.approx([math.sqrt(205) / 2 / 5, math.sqrt(205) / 2 / 10, 0])


def test_without_memory_the_moments_are_the_last_gradients():
    logged = Problem(OPPOSED, beta1=0.0, beta2=0.0).second()
    assert kappas(logged) == pytest.approx([1, 1.5, 0])


def test_fosc_is_the_mean_over_the_batch():
    """The loss is a mean over two images: each has half its slope, and FOSC 0.1 times the whole slope."""
    problem = Problem(OPPOSED)
    x_adv = torch.full((2, 1), 0.5, requires_grad=True)
    attacked = Box(torch.full((2, 1), 0.4), torch.full((2, 1), 0.6))
    batch = BoundedBatch(torch.tensor([0, 0]), scheduled={"threshold": 0.5}, x_adv=x_adv, attacked=attacked)
    terms = {"adv_loss": problem.a @ problem.theta + 2 * x_adv.mean(), "ibp_loss": problem.b @ problem.theta}
    logged = problem.loss.backward(batch, terms, [problem.theta], problem.memory)
    assert float(logged["fosc"]) == pytest.approx(0.2)


def test_norm_and_moment_differ_when_gradients_vary():
    """Adversarial gradients (3, 4), then (3, -4): beta1 = 1/2 gives m1 = (3, -4/3) with |m1|^2 = 97/9, but v1 = 5.

    Corrected: m1 = (0.5 * (0.5 * (3, 4)) + 0.5 * (3, -4)) / 0.75 = (3, -4/3). b = (-2, 0): product -6.
    """
    found = {}
    for projection in ("norm", "moment"):
        problem = Problem(OPPOSED, slope=6.0, projection=projection, beta1=0.5)
        problem.step()
        problem.step(a=(3.0, -4.0))
        found[projection] = kappas(problem.step())[0]
    assert found["norm"] == pytest.approx(6 / 25)
    assert found["moment"] == pytest.approx(6 / (97 / 9))


def test_weights_do_not_depend_on_the_current_gradient():
    first, second = Problem(AGREEING), Problem(AGREEING)
    assert kappas(first.second()) == kappas(second.second(a=(-100.0, 7.0)))


def test_moments_are_bias_corrected_averages_of_gradients_and_norms():
    problem = Problem(AGREEING, beta1=0.9, beta2=0.99)
    problem.step()
    assert problem.memory["m_adv"].tolist() == pytest.approx([0.3, 0.4])
    assert float(problem.memory["v_adv"]) == pytest.approx(0.05)  # of the norm 5, not of 25
    assert float(problem.memory["t"]) == 1


def test_regularisers_come_on_top_unweighted():
    problem = Problem(OPPOSED)
    problem.step(l1=problem.theta @ torch.tensor([10.0, 0.0]))
    problem.step(l1=problem.theta @ torch.tensor([10.0, 0.0]))
    torch.testing.assert_close(problem.theta.grad, torch.tensor([10.0, 4.0]))
    assert problem.memory["m_ibp"].tolist() == pytest.approx([-2 * 0.19, 0])  # not in the moments


def test_constant_weights_are_the_plain_sum():
    problem = Problem(OPPOSED, weights="ones")
    problem.second()
    torch.testing.assert_close(problem.theta.grad, torch.tensor([1.0, 4.0]))


def test_threshold_stays_at_its_maximum_during_the_ramp_then_falls_to_zero():
    clock, ramp_end = Clock(10, 20), 50
    at = {step: Progress(1.0, step, clock, ramp_end) for step in (0, 50, 75, 100, 150, 199)}
    loss = LOSSES.build({"name": "adv_ibp", "fosc_max": 0.4, "fosc_epochs": 10})
    assert [loss.threshold(now) for now in at.values()] == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.0, 0.0])
    rest = LOSSES.build({"name": "adv_ibp", "fosc_max": 0.3})
    assert [rest.threshold(at[step]) for step in (50, 100)] == pytest.approx([0.3, 0.2])


def test_fosc_by_hand_and_as_a_maximum_over_the_corners():
    box = Box(torch.tensor([[0.0, 0.2]]), torch.tensor([[0.5, 0.6]]))
    x, gradient = torch.tensor([[0.5, 0.3]]), torch.tensor([[2.0, -3.0]])
    assert float(first_order_stationarity(gradient, x, box)) == pytest.approx(3 * 0.1)
    corners = torch.cartesian_prod(torch.tensor([0.0, 0.5]), torch.tensor([0.2, 0.6]))
    assert float(((corners - x) @ gradient[0]).max()) == pytest.approx(0.3)
    at_maximum = torch.tensor([[0.5, 0.2]])
    assert float(first_order_stationarity(gradient, at_maximum, box)) == 0


def settings(*assignments: str):
    quick = (
        "method=adv_ibp", "training.epochs=4", "model.width=4", "model.hidden=16", "training.batch_size=256",
        "training.evaluate_every=4", "eps.schedule={name: linear, warmup: 1.5, attack_warmup: 0.5, length: 1}",
    )  # fmt: skip
    return load(None, [parse_assignment(text) for text in (*quick, *assignments)])


@pytest.mark.parametrize("method", ["adv_ibp", "adv_crown_ibp"])
@pytest.mark.parametrize("steps", [3, 8, 15])
def test_stopped_in_either_warmup_or_later_and_resumed_is_bit_identical(tmp_path, train_and_stop, method, steps):
    """6 steps an epoch: clean warm-up up to 6, adversarial up to 9, then joint."""
    config = settings(f"method={method}", "training.shi.weight=0.1", "training.l1=1e-6")
    experiment.train(config, tmp_path / "whole", CPU, quiet=True)
    train_and_stop(config, tmp_path / "part", steps)
    experiment.train(config, tmp_path / "part", CPU, resume=True, quiet=True)
    whole, part = (checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("whole", "part"))
    assert all(torch.equal(part["weights"][name], weight) for name, weight in whole["weights"].items())
    memory = whole["training"]["method"]
    assert float(memory["t"]) == 14  # of 24 steps, 9 are warm-up, and the first of the ramp has radius 0
    assert all(torch.equal(part["training"]["method"][name], value) for name, value in memory.items())


def test_the_two_warmups_and_what_is_logged(tmp_path):
    experiment.train(settings("eps.schedule.warmup=2", "eps.schedule.attack_warmup=1"), tmp_path, CPU, quiet=True)
    rows = [json.loads(line)["train"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "adversarial" not in rows[0]
    assert "adversarial" in rows[1]
    assert not {"ibp_loss", "fosc"} & (set(rows[0]) | set(rows[1]))
    assert {"kappa_adv", "kappa_ibp", "kappa_reg", "fosc", "agree", "prefer_adv", "prefer_ibp"} <= set(rows[3])
    assert rows[3]["agree"] + rows[3]["prefer_adv"] + rows[3]["prefer_ibp"] == pytest.approx(1)


def test_the_adversarial_warmup_must_fit_into_the_warmup():
    with pytest.raises(UserError, match="attack_warmup 2 is longer than warmup 1"):
        settings("eps.schedule={name: linear, warmup: 1, attack_warmup: 2}")


def test_gradients_are_laid_out_as_the_parameters():
    """Fused optimisers take a gradient's numbers in the parameter's order; those of convolutions have channels last."""
    config = load(None, [parse_assignment("method=adv_ibp")])
    network = BoundedNetwork(config.model.build((1, 8, 8), 10), (1, 8, 8), 10)
    parameters, x, labels = list(network.parameters()), torch.rand(8, 1, 8, 8), torch.arange(8)
    memory = config.method.memory(parameters)
    radii = Radii(bounded=0.1, attacked=0.1, fraction=1.0)
    batch, terms = forward_batch(network, config.method, config.attack, x, labels, radii, config.training)
    config.method.backward(batch, terms, parameters, memory)
    assert all(p.grad.stride() == p.stride() for p in parameters)
