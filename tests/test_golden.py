"""Our numbers are the published implementation's numbers (tests/golden/README.md), to a relative 1e-4 or better."""

import math

import pytest
import torch
from torch import nn

from expressive_losses.attacks.base import Attack
from expressive_losses.bounds import record_statistics
from expressive_losses.config import ShiConfig, TrainingConfig
from expressive_losses.initialize import shi_initialize
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import EPS_SCHEDULES, LOSSES
from expressive_losses.regularizers import l1_norm, shi_regularizer
from expressive_losses.schedules import Clock
from expressive_losses.step import Radii, evaluate_batch
from expressive_losses.types import BoundedBatch, Box, margins_of

METHODS = {"ccibp": "cc_ibp", "mtlibp": "mtl_ibp", "expibp": "exp_ibp", "sabr": "sabr"}
ALPHAS = ("0", "0.1", "0.5", "1")


class FixedPoint(Attack):
    """The adversarial point that the golden numbers were computed with."""

    sign: torch.Tensor
    eps: float

    def __call__(self, logits, box, labels, generator=None, start=None):
        return (start + self.eps * self.sign).clamp(0, 1)


def close(ours, theirs, rtol=1e-4):
    ours = torch.as_tensor(ours)
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=1e-6 * float(theirs.abs().max() + 1e-3))


@pytest.mark.parametrize(("method", "key"), [("ibp", "ibp_lb"), ("crown_ibp", "crown_ibp_lb")])
def test_bounds_in_eval_mode(golden, method, key):
    close(golden.network().margins(golden.box, golden.labels, method), golden[f"A.eval.{key}"])


@pytest.mark.slow
def test_crown_and_alpha_crown_in_eval_mode(golden):
    network, box = golden.network(), golden.box[:2]
    crown = network.margins(box, golden.labels[:2], "crown")
    close(crown, golden["A.eval.crown_lb"][:2])
    alpha = network.margins(box, golden.labels[:2], "alpha_crown")
    # an optimisation: not the same bits, but the same tightness
    torch.testing.assert_close(alpha, golden["A.eval.alpha_crown_fixedinterm_lb"][:2], rtol=1e-3, atol=1e-3)
    assert (alpha > crown).any()


def test_bounds_of_relu_inputs(golden):
    boxes = golden.network().bounds(golden.box, golden.labels).relu_inputs
    lowest = golden["A.eval.ibp.preact_lower_mean_min"]
    highest = golden["A.eval.ibp.preact_upper_mean_max"]
    for box, low, high in zip(boxes, lowest, highest, strict=True):
        close(torch.stack([box.lower.mean(), box.lower.min()]), low)
        close(torch.stack([box.upper.mean(), box.upper.max()]), high)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("theirs", ["ccibp", "mtlibp", "expibp"])
def test_losses_in_eval_mode(golden, theirs, alpha):
    network = golden.network()
    batch = BoundedBatch(
        golden.labels, None, network(golden.adversarial), {"ibp": network.margins(golden.box, golden.labels)}
    )
    loss = LOSSES.build({"name": METHODS[theirs], "alpha": float(alpha)})
    close(loss(batch)["loss"], golden[f"A.eval.{theirs}.{alpha}"])


def test_margins_and_robust_loss(golden):
    network = golden.network()
    close(margins_of(network(golden.adversarial), golden.labels), golden["A.eval.adv_diff"])
    close(verified_cross_entropy(network.margins(golden.box, golden.labels)), golden["A.eval.robust_loss"])


@pytest.mark.parametrize("alpha", ["0", "0.1", "0.5"])
def test_sabr_in_eval_mode(golden, alpha):
    """alpha 1 is left out: the published box leaves the region there (docs/differences.md); ours is below."""
    region = golden.box.shrink(float(alpha), golden.adversarial, golden.eps)
    margins = golden.network().margins(region, golden.labels)
    close(margins, golden[f"A.eval.sabr_lb.{alpha}"], rtol=2e-4)
    close(verified_cross_entropy(margins), golden[f"A.eval.sabr.{alpha}"])


def test_sabr_at_alpha_one_is_the_ibp_loss_and_published_is_not(golden):
    region = golden.box.shrink(1.0, golden.adversarial, golden.eps)
    torch.testing.assert_close(region.lower, golden.box.lower, atol=1e-6, rtol=0)
    torch.testing.assert_close(region.upper, golden.box.upper, atol=1e-6, rtol=0)
    assert golden["A.eval.sabr.1"] > golden["A.eval.robust_loss"] * 1.01


@pytest.mark.parametrize("eps", ["0", "0.05", "0.1"])
def test_regularizer(golden, eps):
    bounds = golden.network().bounds(golden.box, golden.labels)
    close(shi_regularizer(bounds, float(eps) / 0.1, weight=0.5, tol=0.5), golden[f"A.eval.shi_reg.eps{eps}"])


def test_l1(golden):
    close(l1_norm(golden.network()), golden["A.eval.l1_sum"])


def train_step(golden, theirs, alpha, network):
    config = TrainingConfig(l1=1e-6, shi=ShiConfig(weight=0.5, tol=0.5))
    attack = FixedPoint(sign=torch.from_numpy(golden.arrays["adv_sign_int8"]).float(), eps=golden.eps)
    loss = LOSSES.build({"name": METHODS[theirs], "alpha": float(alpha)})
    radii = Radii(bounded=golden.eps, attacked=golden.eps, fraction=0.5)
    return evaluate_batch(network, loss, attack, golden.x, golden.labels, radii, config)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("theirs", METHODS)
def test_training_step(golden, theirs, alpha):
    """Loss, regulariser, total, every gradient norm of a whole step, and BatchNorm's statistics after it."""
    if theirs == "sabr" and alpha == "1":
        pytest.skip("the published box leaves the region at alpha 1 (docs/differences.md)")
    network = golden.network()
    terms = train_step(golden, theirs, alpha, network)
    key = f"A.train.{theirs}.{alpha}"
    close(terms["loss"], golden[key])
    close(terms["total"], golden[f"{key}.total"])
    close(terms["shi"], golden[f"{key}.reg"])
    terms["total"].backward()
    norms = torch.stack([p.grad.norm() for p in network.parameters()])
    theirs_norms = golden[f"{key}.param_grad_norms"]
    # the bias before a BatchNorm has gradient 0 up to rounding: compare on the scale of the largest
    torch.testing.assert_close(norms, theirs_norms, rtol=1e-3, atol=1e-5 * float(theirs_norms.max()))
    for layer in (1, 4, 8):
        close(network.model[layer].running_mean, golden[f"A.train.bn_after2fwd.{layer}.running_mean"])
        close(network.model[layer].running_var, golden[f"A.train.bn_after2fwd.{layer}.running_var"])


def test_training_bounds_use_the_adversarial_batch(golden):
    network = golden.network().train()
    network(golden.x)
    with record_statistics(network) as statistics:
        network(golden.adversarial)
    for method, key in (("ibp", "ibp_lb"), ("crown_ibp", "crown_ibp_lb")):
        close(network.bounds(golden.box, golden.labels, method, statistics).margins, golden[f"A.train.{key}"])


def test_initialization_targets(golden):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4), nn.Conv2d(16, 32, 4), nn.Flatten(), nn.Linear(1568, 100), nn.Linear(100, 10)
    )
    last, bias = model[4].weight.clone(), model[0].bias.clone()
    torch.manual_seed(0)
    shi_initialize(model)
    for layer, std in zip((model[0], model[1], model[3]), golden.arrays["ibp_init_std"], strict=True):
        assert math.isclose(float(layer.weight.std()), std, rel_tol=0.15)
        assert math.isclose(math.sqrt(2 * math.pi) / layer.weight[0].numel(), std, rel_tol=1e-6)
    assert torch.equal(model[4].weight, last)
    assert torch.equal(model[0].bias, bias)


def test_smoothed_schedule(golden):
    schedule = EPS_SCHEDULES.build({"name": "smoothed", "warmup": 0, "length": 6})
    theirs = golden.arrays["smoothed_sched.max0.3.start1.len6.235batches"]
    ours = [0.3 * schedule.fraction(step, Clock(235, 8)) for step in range(len(theirs))]
    assert max(abs(ours - theirs)) < 1e-12


def test_box_of_the_published_code(golden):
    box = Box.around(golden.x, golden.eps)
    assert torch.equal(box.lower, (golden.x - golden.eps).clamp(min=0))
    assert torch.equal(box.upper, (golden.x + golden.eps).clamp(max=1))
