"""What single images cannot show: several images and classes; names of logged terms; the ramp's ends; limits."""

import math

import pytest
import torch

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import load, parse_assignment
from expressive_losses.losses.adv_ibp import first_order_stationarity
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import EPS_SCHEDULES, LOSSES, LR_SCHEDULES
from expressive_losses.regularizers import shi_regularizer
from expressive_losses.schedules import EpsSchedule
from expressive_losses.step import Radii, evaluate_batch
from expressive_losses.types import BoundedBatch, Bounds, Box, Clock, Progress, specification

HALFWAY = Progress(0.5, step=5, clock=Clock(1, 20), ramp_end=10)
# Two images of two classes, label 0: adversarial margins 2 and -1, IBP margins -1 and -3, CROWN-IBP margins 0 and 1.
TWO = BoundedBatch(
    torch.tensor([0, 0]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]]),
    {"ibp": torch.tensor([[-1.0], [-3.0]]), "crown_ibp": torch.tensor([[0.0], [1.0]])},
)  # fmt: skip


def softplus(x: float) -> float:
    """Cross-entropy of two classes whose margin is -x."""
    return math.log1p(math.exp(x))


def with_numbers(batch: BoundedBatch, **scheduled: float) -> BoundedBatch:
    return BoundedBatch(batch.labels, batch.clean, batch.adversarial, batch.margins, scheduled)


def test_exponents_are_on_each_image_or_on_the_batch():
    adversarial, verified = (softplus(-2), softplus(1)), (softplus(1), softplus(3))
    each = [a**0.75 * v**0.25 for a, v in zip(adversarial, verified, strict=True)]
    of_means = (sum(adversarial) / 2) ** 0.75 * (sum(verified) / 2) ** 0.25
    for average, expected in (("sample", sum(each) / 2), ("batch", of_means)):
        terms = LOSSES.build({"name": "exp_ibp", "alpha": 0.25, "average": average})(TWO)
        assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)
        assert float(terms["adv_loss"]) == pytest.approx(sum(adversarial) / 2, rel=1e-6)
        assert float(terms["ibp_loss"]) == pytest.approx(sum(verified) / 2, rel=1e-6)


def test_softplus_is_summed_over_classes_and_averaged_over_images():
    margins = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])
    each = sum(softplus(-m) for row in margins.tolist() for m in row)
    loss = LOSSES.build({"name": "ibp", "specification_loss": "softplus"})
    assert float(loss.verified_loss(margins)) == pytest.approx(each / 2, rel=1e-6)
    other = float(LOSSES.build("ibp").verified_loss(margins))
    rows = [math.log1p(sum(math.exp(-m) for m in row)) for row in margins.tolist()]
    assert other == pytest.approx(sum(rows) / 2, rel=1e-6)


def test_crown_ibp_margins_are_mixed_with_beta():
    """beta 0.25: 0.25 * 0 + 0.75 * -1 = -0.75 and 0.25 * 1 + 0.75 * -3 = -2."""
    terms = LOSSES.build({"name": "crown_ibp"})(with_numbers(TWO, beta=0.25, kappa=1.0))
    assert float(terms["loss"]) == pytest.approx((softplus(0.75) + softplus(2)) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("exp_ibp", ("loss", "adv_loss", "ibp_loss")),
        ("mtl_ibp", ("loss", "adv_loss", "ibp_loss")),
        ("ibp", ("loss", "ibp_loss")),
        ({"name": "ibp", "adversarial_weight": 0.5}, ("loss", "ibp_loss", "adv_loss")),
        ("crown_ibp", ("loss", "verified_loss")),
        ("trades", ("loss", "divergence")),
    ],
    ids=str,
)
def test_names_of_logged_terms(spec, names):
    """They are keys of metrics.jsonl, which reports read."""
    assert set(LOSSES.build(spec)(with_numbers(TWO, kappa=0.5, beta=0.5))) == set(names)


def test_half_an_adversarial_loss_is_added():
    terms = LOSSES.build({"name": "ibp", "adversarial_weight": 0.5})(with_numbers(TWO, kappa=1.0))
    assert float(terms["loss"] - terms["ibp_loss"]) == pytest.approx(0.5 * float(terms["adv_loss"]), rel=1e-5)


def test_needs_at_the_ends_of_the_ramp():
    ibp = {"name": "ibp", "kappa_start": 0.0, "kappa_end": 1.0}
    assert LOSSES.build(ibp).needed(HALFWAY) == ("clean", "ibp")
    assert LOSSES.build(ibp).needed(Progress(1.0)) == ("ibp",)
    both = LOSSES.build("adv_crown_ibp")
    assert both.needed(Progress(0.0)) == ("adv", "x_adv", "crown_ibp")
    assert both.needed(Progress(0.01)) == ("adv", "x_adv", "ibp", "crown_ibp")
    assert both.needed(Progress(1.0)) == ("adv", "x_adv", "ibp")


def test_only_bounds_of_the_whole_box_are_called_verified():
    """SABR's small box, and boxes shrunk on the way, prove nothing."""
    settings = load(None, [{"model": {"name": "cnn_tiny", "width": 2, "hidden": 4}}])
    x, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    torch.manual_seed(0)
    network = BoundedNetwork(settings.model.build((1, 8, 8), 10), (1, 8, 8), 10)
    found = {}
    for name, method in (
        ("whole", "mtl_ibp"), ("logits", "{name: ibp, elision: false}"), ("small", "{name: sabr, alpha: 0.4}"),
        ("shrunk", "{name: sabr, alpha: 1.0, relu_shrink: 0.8}"), ("crown", "{name: cc_ibp, bound: crown_ibp}"),
    ):  # fmt: skip
        loss = load(None, [parse_assignment(f"method={method}")]).method
        terms = evaluate_batch(network, loss, settings.attack, x, labels, Radii(0.1, 0.1, 1.0), settings.training)
        found[name] = terms.keys() & {"verified", "small_box"}
    assert found["whole"] == found["logits"] == found["crown"] == {"verified"}
    assert found["small"] == found["shrunk"] == {"small_box"}


def test_sabr_shrinks_only_where_it_is_asked_to():
    assert LOSSES.build("sabr").bound_options() == {}
    assert LOSSES.build({"name": "sabr", "relu_shrink": 0.8}).bound_options() == {"relu_shrink": 0.8}


def test_the_attack_follows_the_radius_where_a_schedule_says_nothing():
    class Steps(EpsSchedule):
        def fraction(self, step: int, clock: Clock) -> float:
            return step / clock.steps(4, "epochs")

    clock = Clock(5, 4)
    assert Steps().attack_fraction(10, clock) == Steps().fraction(10, clock)


def test_a_cosine_of_one_step():
    one = LR_SCHEDULES.build({"name": "cosine", "length": 1, "unit": "steps", "floor": 0.1})
    assert [one.factor(step, Clock(5, 4)) for step in (0, 1, 2)] == pytest.approx([1, 0.1, 0.1])


def test_a_short_ramp_after_a_warmup_is_linear():
    schedule = EPS_SCHEDULES.build({"name": "smoothed", "warmup": 2, "length": 3, "unit": "steps"})
    expected = [0, 0, 0, 1 / 3, 2 / 3, 1, 1]
    assert [schedule.fraction(step, Clock(5, 4)) for step in range(7)] == pytest.approx(expected)


def test_samples_are_uniform_reproducible_and_of_the_boxes_dtype():
    box = Box(torch.full((4000, 1), 2.0, dtype=torch.float64), torch.full((4000, 1), 6.0, dtype=torch.float64))
    x = box.sample(torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    assert box.contains(x).all()
    for share in (0.1, 0.25, 0.5, 0.9):
        assert float((x < 2 + 4 * share).double().mean()) == pytest.approx(share, abs=0.04)
    assert torch.equal(x, box.sample(torch.Generator().manual_seed(0)))
    assert not torch.equal(x, box.sample(torch.Generator().manual_seed(1)))
    assert Box(torch.zeros(2, 3, device="meta"), torch.ones(2, 3, device="meta")).sample().device.type == "meta"


def test_boxes_of_some_samples():
    box = Box(torch.zeros(3, 2), torch.arange(6.0).view(3, 2))[[2, 0]]
    assert box.lower.tolist() == [[0, 0], [0, 0]]
    assert box.upper.tolist() == [[4, 5], [0, 1]]


def test_the_specification_has_the_dtype_that_is_asked_for():
    assert specification(torch.tensor([1]), 3, torch.float64).dtype == torch.float64


def regulariser_of_a_layer(tol: float, scale: float) -> float:
    """Shi et al.'s terms of four neurons with centres 4, 9, -2 and 0.5 times ``scale``, the input's half-width 0.1.

    Two are surely active, one inactive, one neither.
    """
    centers = [4 * scale, 9 * scale, -2 * scale, 0.5 * scale]
    mean, width = sum(centers) / 4, (2 + 1 + 1 + 1.5) * scale / 4
    tightness = max(tol - 0.1 / width, 0) / tol
    of_means = (2 / 4) / (13 / 4)
    of_variances = (centers[2] - mean) ** 2 / ((centers[0] - mean) ** 2 + (centers[1] - mean) ** 2)
    return tightness + (max(tol - of_means, 0) + max(tol - of_variances, 0)) / tol


@pytest.mark.parametrize(("tol", "fraction"), [(0.8, 0.25), (0.5, 0.0)])
def test_shis_regulariser_by_hand(tol, fraction):
    lower, upper = torch.tensor([[2.0, 8.0, -3.0, -1.0]]), torch.tensor([[6.0, 10.0, -1.0, 2.0]])
    layers = (Box(lower, upper), Box(0.1 * lower, 0.1 * upper))
    bounds = Bounds(torch.zeros(1, 2), Box(torch.zeros(1, 3), torch.full((1, 3), 0.2)), layers)
    expected = 0.6 * (1 - fraction) * (regulariser_of_a_layer(tol, 1.0) + regulariser_of_a_layer(tol, 0.1)) / 2
    assert float(shi_regularizer(bounds, fraction, 0.6, tol)) == pytest.approx(expected, rel=1e-5)
    published = float(shi_regularizer(bounds, fraction, 0.5, 0.5))
    assert float(shi_regularizer(bounds, fraction)) == published


def test_verified_losses_of_single_images():
    margins = torch.tensor([[1.0], [-2.0]])
    each = verified_cross_entropy(margins, "none")
    assert each.tolist() == pytest.approx([softplus(-1), softplus(2)])
    assert float(verified_cross_entropy(margins)) == pytest.approx(sum(each.tolist()) / 2)


def test_stationarity_is_one_number_an_image():
    """To the corner: 2 * 0.1 + 1 * 0.3 and 1 * 0.2 + 3 * 0.4."""
    box = Box(torch.zeros(2, 2), torch.full((2, 2), 0.5))
    x = torch.tensor([[0.4, 0.3], [0.3, 0.1]])
    gradient = torch.tensor([[2.0, -1.0], [1.0, 3.0]])
    assert first_order_stationarity(gradient, x, box).tolist() == pytest.approx([0.5, 1.4])


def test_the_threshold_falls_within_what_is_left_of_the_run():
    """10 steps an epoch, 2 epochs, the ramp ends at step 15: halfway through the last half epoch."""
    loss = LOSSES.build({"name": "adv_ibp", "fosc_max": 0.4})
    now = Progress(1.0, step=17, clock=Clock(10, 2), ramp_end=15)
    assert loss.threshold(now) == pytest.approx(0.4 * (1 - 2 / 5))
