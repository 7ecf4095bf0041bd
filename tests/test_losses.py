"""The losses on literal tensors, and definition 3.1 of paper "Expressive Losses" on random ones."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from expressive_losses.errors import UserError
from expressive_losses.losses.base import ExpressiveLoss, Loss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Clock, Progress, margins_of, specification

EXPRESSIVE = [name for name in LOSSES.names() if issubclass(LOSSES[name], ExpressiveLoss) and name != "sabr"]
NEEDS = {"clean", "adv", "x_adv", "ibp", "ibp_logits", "crown_ibp", "crown_ibp_fused"}
HALFWAY = Progress(0.5, step=5, clock=Clock(1, 20), ramp_end=10)


def random_batch(seed: int = 0, size: int = 32, classes: int = 5) -> BoundedBatch:
    """Adversarial logits and IBP margins with margins <= adversarial margins, as for a point of the bounded region."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    slack = 2 * torch.rand(size, classes - 1, generator=generator, dtype=torch.float64)
    margins = margins_of(logits, labels) - slack
    clean = logits + torch.randn(size, classes, generator=generator, dtype=torch.float64)
    fused = -torch.logsumexp(-margins, 1, keepdim=True)
    each = {method: margins for method in ("ibp", "ibp_logits", "crown_ibp")}
    return BoundedBatch(labels, clean, logits, each | {"crown_ibp_fused": fused})


def value(name: str, batch: BoundedBatch, **fields) -> float:
    """The loss at the end of the ramp."""
    loss = LOSSES.build({"name": name, **fields})
    return float(loss(replace(batch, scheduled=loss.scheduled(Progress())))["loss"])


# One image, two classes, label 0: adversarial margin 2, lower bound -1.
LITERAL = BoundedBatch(
    torch.tensor([0]), torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]),
    {"ibp": torch.tensor([[-1.0]]), "ibp_logits": torch.tensor([[-2.0]]), "crown_ibp": torch.tensor([[0.0]])},
)  # fmt: skip


def softplus(x: float) -> float:
    """Cross-entropy of two classes whose margin is -x."""
    return math.log1p(math.exp(x))


# KL of two Bernoulli distributions, sigmoid(3) (clean) from sigmoid(2) (adversarial).
P, Q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))
KL = P * math.log(P / Q) + (1 - P) * math.log((1 - P) / (1 - Q))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "standard"}, softplus(-3)),
        ({"name": "adversarial"}, softplus(-2)),
        ({"name": "ibp"}, softplus(1)),
        ({"name": "ibp", "kappa_start": 0.0, "kappa_end": 0.25}, 0.75 * softplus(-3) + 0.25 * softplus(1)),
        ({"name": "cc_ibp", "alpha": 0.25}, softplus(-(0.75 * 2 + 0.25 * -1))),
        ({"name": "mtl_ibp", "alpha": 0.25}, 0.75 * softplus(-2) + 0.25 * softplus(1)),
        ({"name": "exp_ibp", "alpha": 0.25}, softplus(-2) ** 0.75 * softplus(1) ** 0.25),
        ({"name": "exp_ibp", "alpha": 0.25, "average": "sample"}, softplus(-2) ** 0.75 * softplus(1) ** 0.25),
        ({"name": "crown_ibp", "beta_start": 1.0, "beta_end": 0.5}, softplus(-(0.5 * 0 + 0.5 * -1))),
        ({"name": "crown_ibp", "kappa_end": 0.5, "beta_end": 0.0}, 0.5 * softplus(-3) + 0.5 * softplus(1)),
        ({"name": "crown_ibp", "beta_end": 1.0}, softplus(0)),
        ({"name": "ibp", "elision": False}, softplus(2)),
        ({"name": "ibp", "specification_loss": "softplus"}, softplus(1)),
        ({"name": "ibp", "adversarial_weight": 2.0}, softplus(1) + 2 * softplus(-2)),
        ({"name": "mtl_ibp", "alpha": 0.25, "bound": "crown_ibp"}, 0.75 * softplus(-2) + 0.25 * softplus(0)),
        ({"name": "cc_ibp", "alpha": 0.25, "bound": "crown_ibp"}, softplus(-(0.75 * 2 + 0.25 * 0))),
        ({"name": "sabr", "robust_weight": 0.7}, 0.7 * softplus(1) + 0.3 * softplus(-3)),
        ({"name": "adv_ibp"}, softplus(-2) + softplus(1)),
        ({"name": "adv_crown_ibp"}, softplus(-2) + softplus(1)),
        ({"name": "trades", "weight": 2.0}, softplus(-3) + 2 * KL),
    ],
    ids=lambda v: v["name"] if isinstance(v, dict) else None,
)
def test_equations_on_literal_tensors(spec, expected):
    assert value(batch=LITERAL, **spec) == pytest.approx(expected, rel=1e-6)


def test_verified_cross_entropy_of_exact_margins_is_cross_entropy():
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    torch.testing.assert_close(verified_cross_entropy(margins_of(logits, labels)), F.cross_entropy(logits, labels))


def test_margins_are_the_specification_applied():
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    applied = torch.einsum("bmk,bk->bm", specification(labels, 5), logits)
    torch.testing.assert_close(margins_of(logits, labels), applied)


@pytest.mark.parametrize("name", EXPRESSIVE)
@pytest.mark.parametrize("seed", range(3))
def test_expressivity(name, seed):
    """alpha 0 is the adversarial loss, 1 the verified loss, and the loss increases between them."""
    batch = random_batch(seed)
    adversarial = float(F.cross_entropy(batch.adversarial, batch.labels))
    verified = float(verified_cross_entropy(batch.margins["ibp"]))
    values = [value(name, batch, alpha=a / 20) for a in range(21)]
    assert values[0] == pytest.approx(adversarial, rel=1e-12)
    assert values[-1] == pytest.approx(verified, rel=1e-12)
    assert all(low <= high + 1e-12 for low, high in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_order_between_the_methods(alpha, seed):
    """CC <= MTL (proposition 3.3) and Exp <= MTL (weighted means); Exp per sample <= Exp on means (Hoelder)."""
    batch = random_batch(seed)
    mtl = value("mtl_ibp", batch, alpha=alpha)
    assert value("cc_ibp", batch, alpha=alpha) <= mtl
    exp = value("exp_ibp", batch, alpha=alpha)
    assert exp <= mtl
    assert value("exp_ibp", batch, alpha=alpha, average="sample") <= exp


def test_exp_ibp_has_a_finite_gradient_where_the_adversarial_loss_underflows():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    batch = BoundedBatch(torch.tensor([0]), None, logits, {"ibp": torch.tensor([[1.0]])})
    LOSSES.build({"name": "exp_ibp", "alpha": 0.5})(batch)["loss"].backward()
    assert torch.isfinite(logits.grad).all()


VARIANTS = [
    *LOSSES.names(),
    {"name": "ibp", "elision": False, "adversarial_weight": 1.0, "kappa_end": 0.5},
    {"name": "crown_ibp", "kappa_start": 0.0, "kappa_end": 0.5, "beta_end": 1.0},
    {"name": "crown_ibp", "kappa_start": 0.0, "kappa_end": 0.5, "fused": True},
    *({"name": name, "bound": "crown_ibp", "robust_weight": 0.7} for name in (*EXPRESSIVE, "sabr")),
]


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_every_loss_gets_by_with_what_it_declares(spec):
    """Property of all plug-ins: given only its needs, a loss is a finite scalar, at every point of the ramp."""
    loss: Loss = LOSSES.build(spec)
    full = random_batch()
    for fraction in (0.01, 0.5, 1.0):
        now = Progress(fraction)
        needs = loss.needed(now)
        assert set(needs) <= set(loss.needs) <= NEEDS
        batch = BoundedBatch(
            full.labels,
            full.clean if "clean" in needs else None,
            full.adversarial if "adv" in needs else None,
            {m: full.margins[m] for m in needs if m in full.margins},
            loss.scheduled(now),
        )
        terms = loss(batch)
        assert terms["loss"].ndim == 0
        assert torch.isfinite(terms["loss"])


def test_weights_along_the_ramp():
    """Paper CROWN-IBP's kappa 1 to 0.5 is our 0 to 0.5, beta 1 to 0; each bound only while it has weight."""
    loss = LOSSES.build({"name": "crown_ibp", "kappa_start": 0.0, "kappa_end": 0.5})
    assert (loss.kappa(HALFWAY), loss.beta(HALFWAY)) == (0.25, 0.5)
    assert loss.needed(HALFWAY) == ("clean", "ibp", "crown_ibp")
    assert loss.needed(Progress(1.0)) == ("clean", "ibp")
    assert LOSSES.build("crown_ibp").needed(Progress(0.0)) == ("crown_ibp",)
    assert LOSSES.build({"name": "crown_ibp", "beta_end": 1.0}).needed(Progress(1.0)) == ("crown_ibp",)
    assert LOSSES.build("adv_crown_ibp").needed(HALFWAY) == ("adv", "x_adv", "ibp", "crown_ibp")
    assert LOSSES.build("adv_crown_ibp").needed(Progress(1.0)) == ("adv", "x_adv", "ibp")


def test_kappa_follows_eps_or_a_schedule_of_its_own():
    schedule = {"name": "linear", "warmup": 4, "length": 4, "unit": "steps"}
    own = LOSSES.build({"name": "ibp", "kappa_start": 0.0, "kappa_end": 0.4, "kappa_schedule": schedule})
    eps = LOSSES.build({"name": "ibp", "kappa_start": 0.0, "kappa_end": 0.4})
    assert own.kappa(HALFWAY) == pytest.approx(0.4 * 0.25)
    assert eps.kappa(HALFWAY) == pytest.approx(0.4 * 0.5)
    assert LOSSES.build(own.spec()) == own


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_has_one_line_of_help_and_rebuilds_from_its_spec(name):
    assert len(LOSSES.help(name)) > 10
    loss = LOSSES.build(name)
    assert LOSSES.build(loss.spec()) == loss


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mtl_ipb", "unknown method 'mtl_ipb'; did you mean 'mtl_ibp'?"),
        ({"name": "mtl_ibp", "alpah": 0.2}, "unknown key 'alpah'; did you mean 'alpha'?"),
        ({"name": "mtl_ibp", "alpha": 1.2}, "alpha: Input should be less than or equal to 1, got 1.2"),
        ({"name": "mtl_ibp", "alpha": "much"}, "alpha"),
        ({"name": "standard", "alpha": 0.2}, "unknown key 'alpha'"),
        ({"alpha": 0.2}, "expected a name"),
        (None, "expected a name"),
    ],
)
def test_bad_specs_say_what_was_meant(spec, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("?", r"\?")):
        LOSSES.build(spec)
