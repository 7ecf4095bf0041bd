"""Attacks: what every one keeps to, literal steps on a linear model, and the published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expressive_losses.attacks import IterativeAttack
from expressive_losses.attacks.apgd import Apgd, ApgdT, checkpoints
from expressive_losses.attacks.fgsm import Fgsm
from expressive_losses.attacks.mi_fgsm import MiFgsm
from expressive_losses.attacks.pgd import Pgd
from expressive_losses.errors import UserError
from expressive_losses.registry import ATTACKS
from expressive_losses.types import Box

EVERY = ATTACKS.names()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 3, 2, 2), torch.randint(4, (6,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("objective", ["ce", "margin"])
def test_every_attack_stays_in_the_box_and_leaves_no_trace(name, objective, network, batch):
    x, labels = batch
    box = Box.around(x, 0.3)
    attack = ATTACKS.build({"name": name, "objective": objective})
    with torch.no_grad():
        adversarial = attack(network, box, labels, seeded(), start=x)
        again = attack(network, box, labels, seeded(), start=x)
    assert box.contains(adversarial).all()
    assert torch.equal(adversarial, again)
    assert not adversarial.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_box_without_width_has_one_point(name, network, batch):
    x, labels = batch
    assert torch.equal(ATTACKS.build(name)(network, Box(x, x), labels), x)


@pytest.mark.parametrize("name", EVERY)
def test_the_noise_of_a_sample_does_not_depend_on_its_batch(name, network, batch):
    x, labels = batch
    box = Box.around(x, 0.3)
    attack = ATTACKS.build(name)
    whole = attack(network, box, labels, [seeded(i) for i in range(6)])
    part = attack(network, box[2:4], labels[2:4], [seeded(i) for i in (2, 3)])
    assert torch.allclose(whole[2:4], part, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_plugin_is_rebuilt_from_its_spec(name):
    attack = ATTACKS.build(name)
    assert ATTACKS.build(attack.spec()) == attack


@pytest.mark.parametrize("name", [name for name in EVERY if issubclass(ATTACKS[name], IterativeAttack)])
@pytest.mark.parametrize("objective", ["ce", "margin"])
@pytest.mark.parametrize("steps, restarts", [(5, 1), (3, 4)])
def test_the_best_iterate_is_no_worse_than_the_start(name, objective, steps, restarts, network, batch):
    x, labels = batch
    attack = ATTACKS.build(
        {
            "name": name,
            "objective": objective,
            "steps": steps,
            "restarts": restarts,
            "random_start": False,
            "step_size": 3,
        }
    )
    adversarial = attack(network, Box.around(x, 0.3), labels, seeded(), start=x)
    assert (attack.value(network(adversarial), labels) >= attack.value(network(x), labels)).all()


def linear(*rows: list[float]) -> nn.Module:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


@pytest.mark.parametrize("name", [name for name in EVERY if name != "none"])
@pytest.mark.parametrize("objective", ["ce", "margin"])
def test_worst_corner_of_a_linear_model(name, objective):
    """f = (x1 - x2, 0), label 0: the worst point of [0.2, 0.6]^2 is (0.2, 0.6), where f = -0.4."""
    box = Box(torch.full((1, 2), 0.2), torch.full((1, 2), 0.6))
    attack = ATTACKS.build({"name": name, "objective": objective})
    found = attack(linear([1.0, -1.0], [0.0, 0.0]), box, torch.tensor([0]), seeded())
    assert torch.allclose(found, torch.tensor([[0.2, 0.6]]), atol=1e-6)


def test_a_pgd_step_is_relative_to_the_half_width():
    """From (0.4, 0.5), centre of [0.2, 0.6] x [0.5, 0.5]: 0.4 - 0.5 * 0.2 = 0.3; no width, no move."""
    box = Box(torch.tensor([[0.2, 0.5]]), torch.tensor([[0.6, 0.5]]))
    pgd = Pgd(steps=1, step_size=0.5, random_start=False)
    found = pgd(linear([1.0, 1.0], [0.0, 0.0]), box, torch.tensor([0]))
    assert torch.allclose(found, torch.tensor([[0.3, 0.5]]))


def test_margin_objective_is_the_largest_wrong_logit_minus_the_true_one():
    """Logits (1, 4, 2): label 0 gives 4 - 1 = 3, label 1 gives 2 - 4 = -2."""
    logits = torch.tensor([[1.0, 4.0, 2.0]] * 2)
    assert Pgd(objective="margin").value(logits, torch.tensor([0, 1])).tolist() == [3.0, -2.0]


def test_mi_fgsm_accumulates_normalised_gradients():
    """m1 = (3, -1)/4 = (.75, -.25); m2 = m1 + (-1, 3)/4 = (.5, .5)."""
    update = MiFgsm().new_update()
    assert update(torch.tensor([[3.0, -1.0]])).tolist() == [[1.0, -1.0]]
    assert update(torch.tensor([[-1.0, 3.0]])).tolist() == [[1.0, 1.0]]


def test_a_nan_never_becomes_the_best_iterate():
    def logits(x):
        return torch.stack([x[:, 0], torch.where(x[:, 0] < 0.3, torch.nan, 0.0)], 1)

    box = Box(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    found = Pgd(steps=10, step_size=0.3, random_start=False)(logits, box, torch.tensor([0]))
    assert 0.3 <= found.item() <= 0.5


def test_unknown_field_and_value_are_named():
    with pytest.raises(UserError, match="attack 'pgd': unknown key 'step'; did you mean 'steps'"):
        ATTACKS.build({"name": "pgd", "step": 3})
    with pytest.raises(UserError, match="attack 'pgd': steps"):
        ATTACKS.build({"name": "pgd", "steps": 0})


PUBLISHED = [(1, Pgd(steps=1, step_size=10)), (1, Fgsm()), (40, Pgd(steps=40, step_size=0.1))]


@pytest.mark.parametrize("steps, attack", PUBLISHED)
def test_pgd_repeats_the_published_attack(steps, attack, golden):
    network = golden.network()
    torch.manual_seed(3)
    logits = network(attack(network, golden.box, golden.labels))
    expected = golden[f"A.pgd.n{steps}.logits"]
    # A pixel whose gradient is zero up to rounding may step the other way: hence 2e-3 of the scale.
    assert ((logits - expected).abs().max() < 2e-3 * expected.abs().max()).item()
    ce = torch.nn.functional.cross_entropy(logits, golden.labels, reduction="none")
    torch.testing.assert_close(ce, golden[f"A.pgd.n{steps}.ce"], rtol=1e-4, atol=0)


def test_kl_objective_moves_away_from_the_prediction_whatever_the_label():
    """TRADES: cross-entropy from the clean probabilities rises like the divergence; the labels play no part."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(8, 1, 4, 4)
    attack = ATTACKS.build({"name": "pgd", "steps": 5, "step_size": 0.5, "objective": "kl"})
    points = [
        attack(network, Box.around(x, 0.1), torch.full((8,), label), torch.Generator().manual_seed(0), start=x)
        for label in (0, 2)
    ]
    assert torch.equal(*points)
    clean, moved = (torch.nn.functional.log_softmax(network(p), 1) for p in (x, points[0]))
    divergence = torch.nn.functional.kl_div(moved, clean, reduction="none", log_target=True).sum(1)
    random = torch.nn.functional.log_softmax(network(Box.around(x, 0.1).sample()), 1)
    assert (divergence >= torch.nn.functional.kl_div(random, clean, reduction="none", log_target=True).sum(1)).all()


def test_apgd_looks_after_the_steps_of_the_paper():
    """p = 0, .22, .41, .57, .70, .80, .87, .93, .99 of 100 steps."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgd_halves_the_step_and_returns_to_the_best_where_it_overshoots():
    """f1 = -(x - 0.3)^2 on [0, 1], from 0.5: a step of 2 half-widths jumps between the ends; the optimum is 0.3."""

    def logits(x):
        return torch.stack([torch.zeros_like(x[:, 0]), -(x[:, 0] - 0.3).square()], 1)

    box, label = Box(torch.zeros(1, 1), torch.ones(1, 1)), torch.tensor([0])
    fields = {"objective": "margin", "random_start": False}
    adaptive = Apgd(steps=100, **fields)(logits, box, label)
    constant = Pgd(steps=100, step_size=2, **fields)(logits, box, label)
    assert abs(adaptive.item() - 0.3) < 0.01 < abs(constant.item() - 0.3)


def test_targeted_objectives_on_literal_logits():
    """Logits (1, 4, 2, 0), label 0, target 2: margin 2 - 1 = 1; DLR 1 / (4 - (1 + 0) / 2) = 2 / 7."""
    logits, pair = torch.tensor([[1.0, 4.0, 2.0, 0.0]]), torch.tensor([[0, 2]])
    assert ApgdT(objective="margin").value(logits, pair).item() == 1
    assert ApgdT(objective="dlr").value(logits, pair).item() == pytest.approx(2 / 7)
    assert ApgdT(objective="ce").value(logits, pair).item() == pytest.approx(logits.log_softmax(1)[0, 2].item())
    assert ApgdT().value(logits, torch.tensor([0])).item() == 3  # the worst margin, over all classes


def test_apgd_t_tries_classes_that_are_not_the_likeliest_at_the_start():
    """At 0.4 class 1 is likelier than class 2, but can never win; class 2 wins beyond 0.85."""

    def logits(x):
        x = x[:, 0]
        return torch.stack([torch.zeros_like(x), -0.1 - x, 20 * (x - 0.8).clamp(max=0.1) - 1, x * 0 - 30], 1)

    box, label, start = Box(torch.zeros(1, 1), torch.ones(1, 1)), torch.tensor([0]), torch.full((1, 1), 0.4)
    fields = {"steps": 20, "random_start": False, "objective": "margin"}
    assert logits(start)[0, 1] > logits(start)[0, 2]
    assert logits(ApgdT(targets_of_each=1, **fields)(logits, box, label, start=start)).argmax() == 0
    assert logits(ApgdT(**fields)(logits, box, label, start=start)).argmax() == 2


@pytest.mark.parametrize("objective", ["ce", "margin"])
def test_apgd_is_no_worse_than_pgd_on_the_published_network(objective, golden):
    network, pgd = golden.network(), Pgd(steps=20, step_size=0.1, objective=objective)
    attacks = (pgd, Apgd(steps=20, objective=objective))
    points = [attack(network, golden.box, golden.labels, seeded()) for attack in attacks]
    values = [pgd.value(network(x), golden.labels).mean() for x in points]
    assert values[1] >= values[0]


def test_the_report_says_which_attack():
    from expressive_losses.verify import build_stages
    from expressive_losses.verify.summary import describe_stage

    _, _, stage, _ = build_stages("attack,ibp", {"attack": {"attack": {"name": "apgd_t", "steps": 7}}})
    assert describe_stage(stage.spec()).startswith("apgd_t (objective dlr, steps 7")
    assert describe_stage({"name": "clean"}) == "clean"


@torch.no_grad()
def test_steps_of_pgd_decay_after_shares_of_them():
    """SABR's eight: four of 0.5, three of 0.05, one of 0.005; 0.9 of eight is all of them."""
    attack = Pgd(steps=8, step_size=0.5, decay_at=(0.5, 0.8, 0.9))
    sizes = [attack.size_of(step) for step in range(8)]
    assert sizes == pytest.approx([0.5] * 4 + [0.05] * 3 + [0.005])
    assert [Pgd(steps=10, step_size=1, decay_at=(0.7,)).size_of(step) for step in (6, 7)] == [1, 0.1]
    with pytest.raises(UserError, match="decay_at"):
        ATTACKS.build({"name": "pgd", "decay_at": [8]})


@torch.no_grad()
def test_a_decayed_ascent_ends_where_its_steps_add_up():
    """A linear model: 0.2 + 0.2 + 0.02 + 0.02 of the half-width along the sign of the gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    x = torch.full((1, 1, 1, 1), 0.5)
    box = Box(x - 0.25, x + 0.25)
    found = Pgd(steps=4, step_size=0.2, decay_at=(0.5,), random_start=False)(model, box, torch.tensor([0]), start=x)
    torch.testing.assert_close(found, x + 0.25 * (0.2 + 0.2 + 0.02 + 0.02))
