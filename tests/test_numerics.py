"""Overflow, NaN and infinities: never a proof, never silently trained on, and finite where a finite answer exists."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.network import BOUND_METHODS
from expressive_losses.errors import UserError
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.regularizers import shi_regularizer
from expressive_losses.types import BoundedBatch, Bounds, Box
from expressive_losses.verify import Cascade, Problem, Status, build_stages
from expressive_losses.verify.settings import Settings


def deep(layers: int, gain: float) -> BoundedNetwork:
    """A deep network whose interval bounds grow by about 2 gain a layer."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 16)]
    for _ in range(layers):
        parts += [nn.ReLU(), nn.Linear(16, 16)]
    module = nn.Sequential(*parts, nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    return BoundedNetwork(module, (1, 4, 4), 3).eval()


@pytest.mark.parametrize("gain", [3.0, 30.0])
def test_bounds_that_overflow_prove_nothing(gain):
    """At gain 30 they are infinite or NaN; the logits themselves may be too, and then refute nothing."""
    network = deep(60, gain)
    problem = Problem.of(network, torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long), 0.1)
    for stages in ("clean,ibp", "clean,crown-ibp", "clean,crown"):
        outcomes = [one for batch in Cascade(build_stages(stages))(network, problem) for one in batch]
        assert not any(one.status is Status.VERIFIED for one in outcomes)
    if gain == 30.0:
        margins = network.margins(problem.box, problem.labels, "ibp")
        assert not torch.isfinite(margins).all()


@torch.no_grad()
@pytest.mark.parametrize("method", BOUND_METHODS)
def test_large_bounds_that_do_not_overflow_are_kept(method):
    network = deep(6, 3.0)
    box, labels = Box.around(torch.rand(2, 1, 4, 4), 0.01), torch.zeros(2, dtype=torch.long)
    with torch.enable_grad() if method == "alpha_crown" else torch.no_grad():
        margins = network.margins(box, labels, method).detach()
    assert torch.isfinite(margins).all()


@pytest.mark.parametrize("worst", [-1e4, -1e30])
def test_loss_of_very_bad_bounds_is_finite_with_a_finite_gradient(worst):
    """Cross-entropy of logits [0, -margins]: about -worst, and its gradient is a softmax."""
    margins = torch.full((4, 9), worst, requires_grad=True)
    loss = verified_cross_entropy(margins)
    assert float(loss.detach()) == pytest.approx(-worst, rel=1e-3)
    loss.backward()
    assert torch.isfinite(margins.grad).all()


@pytest.mark.parametrize("name", ["cc_ibp", "mtl_ibp", "exp_ibp", "sabr"])
def test_expressive_losses_of_very_bad_bounds_are_finite(name):
    adversarial = torch.randn(4, 10, requires_grad=True)
    margins = torch.full((4, 9), -1e6, requires_grad=True)
    batch = BoundedBatch(torch.arange(4), adversarial=adversarial, margins={"ibp": margins})
    spec = {"name": name} if name == "sabr" else {"name": name, "alpha": 0.5}
    loss = LOSSES.build(spec)(batch)["loss"]
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(margins.grad).all()


def relu_bounds(lower: torch.Tensor, upper: torch.Tensor) -> Bounds:
    return Bounds(torch.zeros(1, 2), Box(torch.zeros(1, 4), torch.ones(1, 4)), (Box(lower, upper),))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (-1e30, 1e30), (0.0, 1e-30)],
    ids=["zero", "dead", "active", "unstable", "huge", "tiny"],
)
def test_regulariser_of_degenerate_bounds_is_finite(low, high):
    """All dead, all alive, no width: where the published code divides by zero."""
    lower = torch.full((2, 5), low, requires_grad=True)
    upper = torch.full((2, 5), high, requires_grad=True)
    value = shi_regularizer(relu_bounds(lower, upper), 0.5)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert torch.isfinite(lower.grad).all() and torch.isfinite(upper.grad).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_half_precision_is_refused(dtype):
    """Ten bits of mantissa are too few for a claim; half-precision weights are refused by checkpoint.load_weights."""
    with pytest.raises(UserError, match="float32 or float64"):
        Settings(dtype=dtype)
