"""Schedules: pure functions of the optimiser step, so that a resumed run has nothing to replay.

Lengths are in epochs by default, in steps with ``unit: steps``, in shares of the whole run with ``unit: run``.
Steps count from 0: ``step`` is the number of updates done.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from pydantic import Field, model_validator

from expressive_losses.registry import EPS_SCHEDULES, LR_SCHEDULES, Plugin
from expressive_losses.types import Clock, Unit


class EpsSchedule(Plugin):
    """Progress of the radius: ``fraction(step, clock)`` in [0, 1]."""

    def fraction(self, step: int, clock: Clock) -> float:
        """Return eps(step) / eps(end)."""
        raise NotImplementedError

    def attack_fraction(self, step: int, clock: Clock) -> float:
        """Return the same for the radius of the training attack."""
        return self.fraction(step, clock)

    def end(self, clock: Clock) -> int:
        """Return the first step at which the fraction is 1 for good."""
        raise NotImplementedError


@EPS_SCHEDULES.register("constant")
class ConstantEps(EpsSchedule):
    """The full radius from the first step on."""

    def fraction(self, step: int, clock: Clock) -> float:
        """Return 1."""
        return 1.0

    def end(self, clock: Clock) -> int:
        """Return 0."""
        return 0


class Ramp(EpsSchedule):
    """A radius of 0 for ``warmup``, then a rise over ``length``.

    Training in the warm-up is on clean images, for its last ``attack_warmup`` on attacks of the full radius
    (AdvIBP's two phases; its text leaves the radius of the second open).
    """

    warmup: float = Field(0.0, ge=0, description="in ``unit``s at radius 0")
    attack_warmup: float = Field(0.0, ge=0, description="the last so many ``unit``s of the warm-up are adversarial")
    length: float = Field(20.0, ge=0, description="in ``unit``s of the rise")
    unit: Unit = "epochs"

    @model_validator(mode="after")
    def _attack_within_warmup(self):
        if self.attack_warmup > self.warmup:
            raise ValueError(f"attack_warmup {self.attack_warmup:g} is longer than warmup {self.warmup:g}")
        return self

    def attack_fraction(self, step: int, clock: Clock) -> float:
        """Return 1 in the adversarial part of the warm-up, else the fraction."""
        start = self._start(clock)
        if start - clock.steps(self.attack_warmup, self.unit) <= step < start:
            return 1.0
        return self.fraction(step, clock)

    def end(self, clock: Clock) -> int:
        """Return the step at which the ramp is over."""
        return self._start(clock) + clock.steps(self.length, self.unit)

    def _start(self, clock: Clock) -> int:
        return clock.steps(self.warmup, self.unit)


@EPS_SCHEDULES.register("linear")
class LinearEps(Ramp):
    """A warm-up at radius 0, then a linear ramp (papers IBP and CROWN-IBP)."""

    def fraction(self, step: int, clock: Clock) -> float:
        """Return (step - warm-up) / ramp length, clipped to [0, 1]."""
        start, end = self._start(clock), self.end(clock)
        if step >= end:
            return 1.0
        return (step - start) / (end - start) if step > start else 0.0


@EPS_SCHEDULES.register("smoothed")
class SmoothedEps(Ramp):
    """auto_LiRPA's SmoothedScheduler: a power curve for the first part of the ramp, then linear, with equal
    slopes where they meet.

    With I the first step of the ramp, F its last, M = I + floor(mid (F - I)), t = (M - I)^(beta - 1) and
    a = 1 / ((F - M) beta t + (M - I) t): fraction = a (step - I)^beta up to M, then linear to 1 at F.
    The published ``start=s,length=l`` is ``warmup: s - 1, length: l``.
    """

    mid: float = Field(0.25, gt=0, lt=1)
    beta: float = Field(4.0, ge=2)

    def fraction(self, step: int, clock: Clock) -> float:
        """Return the smoothed progress at ``step``."""
        first, last = self._start(clock), self.end(clock)
        if step >= last:
            return 1.0
        if step <= first:
            return 0.0
        middle = first + math.floor(self.mid * (last - first))
        power = float(middle - first) ** (self.beta - 1)
        if power == 0:  # too short for a curve: all linear
            return (step - first) / (last - first)
        scale = 1.0 / ((last - middle) * self.beta * power + (middle - first) * power)
        if step < middle:
            return scale * float(step - first) ** self.beta
        at_middle = scale * (middle - first) * power
        return at_middle + (1 - at_middle) * (step - middle) / (last - middle)


class LRSchedule(Plugin):
    """Factor of the learning rate: ``factor(step, clock)``."""

    def factor(self, step: int, clock: Clock) -> float:
        """Return lr(step) / lr."""
        raise NotImplementedError

    def check(self, epochs: int, steps: float = math.inf) -> None:
        """Raise ValueError when the schedule cannot be meant for a run of ``epochs``, or, once known, of ``steps``."""


@LR_SCHEDULES.register("constant")
class ConstantLR(LRSchedule):
    """The same learning rate throughout."""

    def factor(self, step: int, clock: Clock) -> float:
        """Return 1."""
        return 1.0


@LR_SCHEDULES.register("multistep")
class MultiStepLR(LRSchedule):
    """Multiply by ``gamma`` at every milestone."""

    milestones: tuple[float, ...] = Field((), description="ascending, in ``unit``s done")
    gamma: float = Field(0.2, gt=0)
    unit: Unit = "epochs"

    @model_validator(mode="after")
    def _ascending(self):
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) <= 0:
            raise ValueError(f"milestones must be positive and ascending, got {list(self.milestones)}")
        return self

    def factor(self, step: int, clock: Clock) -> float:
        """Return gamma ** (number of milestones reached)."""
        reached = bisect_right([clock.steps(m, self.unit) for m in self.milestones], step)
        return self.gamma**reached

    def check(self, epochs: int, steps: float = math.inf) -> None:
        """Refuse milestones at or after the end: they would silently do nothing."""
        end = {"epochs": epochs, "run": 1, "steps": steps}[self.unit]
        if self.milestones and self.milestones[-1] >= end:
            raise ValueError(
                f"lr_schedule: milestone {self.milestones[-1]:g} is not before the end ({end:g} {self.unit})"
            )


@LR_SCHEDULES.register("cosine")
class CosineLR(LRSchedule):
    """Half a cosine from 1 down to ``floor`` over ``length``."""

    length: float = Field(gt=0, description="in ``unit``s")
    floor: float = Field(0.0, ge=0, le=1)
    unit: Unit = "epochs"

    def factor(self, step: int, clock: Clock) -> float:
        """Return floor + (1 - floor) (1 + cos(pi t)) / 2 with t the progress."""
        progress = min(1.0, step / max(1, clock.steps(self.length, self.unit)))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
