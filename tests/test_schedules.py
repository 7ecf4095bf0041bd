"""Schedules by hand, and their properties for every one that is registered."""

import pytest
import torch

from expressive_losses import config as configs
from expressive_losses import experiment
from expressive_losses.errors import UserError
from expressive_losses.registry import EPS_SCHEDULES, LR_SCHEDULES
from expressive_losses.schedules import Clock

E = 10  # steps an epoch
CLOCK = Clock(E, 40)


@pytest.mark.parametrize("name", EPS_SCHEDULES.names())
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"warmup": 1, "length": 3},
        {"warmup": 2, "length": 0},
        {"warmup": 5, "length": 7, "unit": "steps"},
        {"warmup": 0.1, "length": 0.5, "unit": "run"},
    ],
)
def test_every_eps_schedule_rises_from_zero_to_one(name, fields):
    known = EPS_SCHEDULES[name].model_fields
    schedule = EPS_SCHEDULES.build({"name": name, **{k: v for k, v in fields.items() if k in known}})
    values = [schedule.fraction(step, CLOCK) for step in range(40 * E)]
    end = schedule.end(CLOCK)
    assert all(0 <= v <= 1 for v in values)
    assert all(a <= b for a, b in zip(values, values[1:], strict=False))
    assert values[end] == 1.0
    assert all(v == 1.0 for v in values[end:])
    if end > 1:
        assert values[0] == 0.0
        assert values[end - 1] < 1.0


def test_constant_schedules_by_hand():
    constant = EPS_SCHEDULES.build("constant")
    assert [constant.fraction(step, CLOCK) for step in (0, 7)] == [1, 1]
    assert constant.end(CLOCK) == 0
    assert constant.attack_fraction(3, CLOCK) == 1
    assert LR_SCHEDULES.build("constant").factor(9, CLOCK) == 1


def test_attacks_of_the_warmup_are_of_the_full_radius():
    """Warm-up of 3 epochs, the last of them adversarial; then the attack follows the ramp."""
    schedule = EPS_SCHEDULES.build({"name": "linear", "warmup": 3, "attack_warmup": 1, "length": 2})
    assert [schedule.attack_fraction(s, CLOCK) for s in (0, 19, 20, 29, 30, 40, 50)] == [0, 0, 1, 1, 0, 0.5, 1]


def test_smoothed_by_hand():
    """Ramp from 10 to 30 with mid 0.25 and beta 2: M = 15, t = 5, a = 1 / ((30 - 15) 2 5 + 5 5) = 1 / 175."""
    schedule = EPS_SCHEDULES.build({"name": "smoothed", "warmup": 1, "length": 2, "mid": 0.25, "beta": 2})
    expected = {10: 0, 11: 1 / 175, 14: 16 / 175, 15: 25 / 175, 16: 35 / 175, 29: 165 / 175, 30: 1}
    assert {step: schedule.fraction(step, CLOCK) for step in expected} == pytest.approx(expected)


def test_a_ramp_too_short_for_a_curve_is_linear():
    """Three steps, of which the curve would take floor(0.75) = 0."""
    schedule = EPS_SCHEDULES.build({"name": "smoothed", "length": 3, "unit": "steps"})
    assert [schedule.fraction(step, CLOCK) for step in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(
    ("milestones", "unit", "ends"), [([39], "epochs", None), ([40], "epochs", "40 epochs"), ([0.99], "run", None),
                                     ([1], "run", "1 run"), ([10**9], "steps", None), ([], "epochs", None)],
)  # fmt: skip
def test_milestones_must_be_before_the_end(milestones, unit, ends):
    schedule = LR_SCHEDULES.build({"name": "multistep", "milestones": milestones, "unit": unit})
    if ends is None:
        assert schedule.check(40) is None
    else:
        with pytest.raises(
            ValueError, match=rf"^lr_schedule: milestone {milestones[0]} is not before the end \({ends}\)$"
        ):
            schedule.check(40)


def test_milestones_in_steps_must_be_before_the_last_step():
    schedule = LR_SCHEDULES.build({"name": "multistep", "milestones": [600], "unit": "steps"})
    assert schedule.check(40, 601) is None
    with pytest.raises(ValueError, match=r"milestone 600 is not before the end \(600 steps\)"):
        schedule.check(40, 600)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr_schedule": {"name": "multistep", "milestones": [500], "unit": "steps"}}, "milestone 500 is not before"),
        (
            {"method": {"name": "ibp", "kappa_schedule": {"name": "linear", "length": 3}}},
            "kappa_schedule: the ramp reaches",
        ),
        ({"eps": {"schedule": {"name": "linear", "length": 3}}}, "eps.schedule: the ramp reaches its target at step"),
    ],
)
def test_what_would_do_nothing_before_the_end_is_refused(change, message):
    short = {"training": {"epochs": 2}, "eps": {"target": "0.1", "schedule": {"length": 1}}}
    with pytest.raises(UserError, match=message):
        experiment.prepare(configs.load(None, [short, change]), torch.device("cpu"))


def test_linear_by_hand():
    schedule = EPS_SCHEDULES.build({"name": "linear", "warmup": 1, "length": 2})
    assert [schedule.fraction(s, CLOCK) for s in (0, 10, 15, 20, 29, 30)] == [0, 0, 0.25, 0.5, 0.95, 1]


def test_smoothed_is_continuous_with_equal_slopes_where_the_parts_meet():
    schedule = EPS_SCHEDULES.build({"name": "smoothed", "warmup": 1, "length": 100})
    per_epoch, middle = Clock(1000, 200), 1000 + 25000
    before, at, after = (schedule.fraction(middle + d, per_epoch) for d in (-1, 0, 1))
    assert after - at == pytest.approx(at - before, rel=1e-3)
    assert schedule.fraction(1000, per_epoch) == 0


def test_multistep_by_hand():
    schedule = LR_SCHEDULES.build({"name": "multistep", "milestones": [2, 3], "gamma": 0.2})
    assert [schedule.factor(s, CLOCK) for s in (0, 19, 20, 29, 30, 99)] == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_cosine_by_hand():
    schedule = LR_SCHEDULES.build({"name": "cosine", "length": 10, "floor": 0.1})
    assert [schedule.factor(s, CLOCK) for s in (0, 50, 100, 200)] == pytest.approx([1, 0.55, 0.1, 0.1])


def test_shares_of_the_run_scale_with_it():
    schedule = LR_SCHEDULES.build({"name": "multistep", "milestones": [0.5], "unit": "run"})
    for epochs in (4, 40):
        assert [schedule.factor(s, Clock(E, epochs)) for s in (5 * epochs - 1, 5 * epochs)] == pytest.approx([1, 0.2])


@pytest.mark.parametrize("milestones", [[3, 2], [2, 2], [0, 2], [-1]])
def test_milestones_must_ascend(milestones):
    with pytest.raises(UserError, match="milestones must be positive and ascending"):
        LR_SCHEDULES.build({"name": "multistep", "milestones": milestones})


def test_the_attack_has_its_full_radius_in_the_last_part_of_the_warmup():
    schedule = EPS_SCHEDULES.build({"name": "linear", "warmup": 3, "attack_warmup": 1, "length": 2})
    steps = (0, 19, 20, 29, 30, 40, 50)
    assert [schedule.fraction(step, CLOCK) for step in steps] == [0, 0, 0, 0, 0, 0.5, 1]
    assert [schedule.attack_fraction(step, CLOCK) for step in steps] == [0, 0, 1, 1, 0, 0.5, 1]
    plain = EPS_SCHEDULES.build({"name": "smoothed", "warmup": 1, "length": 2})
    assert all(plain.attack_fraction(step, CLOCK) == plain.fraction(step, CLOCK) for step in range(40))
