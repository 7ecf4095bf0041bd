"""Auto-PGD: projected ascent that chooses its own step sizes; untargeted, and targeted at each class.

Written here because no library fits: those on the package index either have no APGD, pin old versions of other
packages, or take a radius and not a box, and seed torch globally.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.attacks.base import (
    IterativeAttack,
    Logits,
    Randomness,
    Start,
    Update,
    _Best,
    per_sample,
    starting_point,
    uniform,
)
from expressive_losses.registry import ATTACKS
from expressive_losses.types import Box, other_classes


@ATTACKS.register("apgd")
class Apgd(IterativeAttack):
    """APGD: sign steps with momentum that halve, sample by sample, when they stop helping, and go on from the best.

    Attributes:
        steps: gradient steps of each restart.
        step_size: the first one, relative to the half-width of the (clipped) box.
        momentum: share of the new step; 1 - momentum is that of the last change.
        rho: steps are halved when less than this share of them raised the objective since the last look.

    Source: Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", algorithm 1, with its constants; ``objective`` "ce" is APGD-CE.
    NOTE: where the box is clipped at 0 or 1, steps are relative to its own half-width, as in all attacks here.
    """

    steps: int = Field(default=100, ge=1)
    step_size: float = Field(default=2.0, gt=0)
    momentum: float = Field(default=0.75, gt=0, le=1)
    rho: float = Field(default=0.75, gt=0, lt=1)

    def new_update(self) -> Update:
        return torch.sign

    def _ascend(self, logits: Logits, box: Box, labels: Tensor, x: Tensor, best: _Best) -> Tensor:
        steps, top, last = _Steps(self, len(x), box), _Best(x), x
        top_gradient = torch.zeros_like(x)
        for step in range(self.steps):
            value, gradient = self.value_and_gradient(logits, x, labels)
            top_gradient = torch.where(per_sample(value > top.value, x), gradient, top_gradient)
            top.offer(x, value)
            back = per_sample(steps.observe(step, value, top.value), x)
            x, gradient = torch.where(back, top.x, x), torch.where(back, top_gradient, gradient)
            share = self.momentum if step else 1.0
            target = box.clamp(x + per_sample(steps.size, x) * box.half_width * gradient.sign())
            x, last = box.clamp(x + share * (target - x) + (1 - share) * (x - last)), x
        with torch.no_grad():
            top.offer(x, self.value(logits(x), labels))
        best.offer(top.x, top.value)
        return x


class _Steps:
    """The step size of each sample: halved at checkpoints where the ascent has got stuck.

    Attributes:
        size: relative to the half-width of the box, (B,).
    """

    def __init__(self, attack: Apgd, count: int, box: Box) -> None:
        self.size = box.lower.new_full((count,), attack.step_size)
        self._rho = attack.rho
        self._checkpoints = checkpoints(attack.steps)
        self._since = 0  # the last checkpoint
        self._rises = torch.zeros_like(self.size)
        self._last = torch.full_like(self.size, torch.inf)
        self._top = torch.full_like(self.size, -torch.inf)
        self._halved = torch.ones_like(self.size, dtype=torch.bool)

    def observe(self, step: int, value: Tensor, top: Tensor) -> Tensor:
        """Enter the objective at an iterate and the best so far, (B,); return who shall go back to the best, (B,)."""
        self._rises = self._rises + (value > self._last)
        self._last = value
        if step not in self._checkpoints:
            return torch.zeros_like(self._halved)
        few = self._rises < self._rho * (step - self._since)
        stuck = ~self._halved & (top <= self._top)
        self._halved, self._top, self._since = few | stuck, top, step
        self._rises = torch.zeros_like(self._rises)
        self.size = torch.where(self._halved, self.size / 2, self.size)
        return self._halved


def checkpoints(steps: int) -> frozenset[int]:
    """Return after which of ``steps`` steps to look: ceil(p_j steps), the p_j ever closer to each other.

    p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    last, share, found = 0, 22, []  # in percent: whole numbers do not round
    while share <= 100:
        found.append(-(-share * steps // 100))
        last, share = share, share + max(share - last - 3, 6)
    return frozenset(found)


@ATTACKS.register("apgd_t")
class ApgdT(Apgd):
    """APGD-T: APGD towards each of the likeliest wrong classes in turn; the point with the worst margin counts.

    Attributes:
        objective: of one target class t: "dlr" is the difference of logits ratio, (f_t - f_y) / (the largest logit -
            the mean of the third and fourth), "margin" is f_t - f_y, "ce" the log-probability of t. With fewer than
            four classes "dlr" is "margin".
        targets_of_each: how many target classes, by their logits at the starting point.

    Source: Croce & Hein (2020), section 4 and appendix; AutoAttack uses nine targets and one restart.
    """

    objective: Literal["dlr", "margin", "ce"] = "dlr"
    targets_of_each: int = Field(default=9, ge=1)

    def __call__(self, logits: Logits, box: Box, labels: Tensor, generator: Randomness = None, start: Start = None):
        center = starting_point(box, start)
        with torch.no_grad():
            there = logits(center)
        others = other_classes(labels, there.shape[1])
        likeliest = others.gather(1, there.gather(1, others).argsort(1, descending=True))
        overall = _Best(center)
        overall.offer(center, self.value(there, labels))
        for target in likeliest[:, : self.targets_of_each].unbind(1):
            found = self._towards(target, logits, box, labels, generator, center)
            with torch.no_grad():
                overall.offer(found, self.value(logits(found), labels))
        return overall.x

    def _towards(
        self, target: Tensor, logits: Logits, box: Box, labels: Tensor, generator: Randomness, center: Tensor
    ) -> Tensor:
        """Return the best point for one target class of each sample, (B,)."""
        best = _Best(center)
        for restart in range(self.restarts):
            x = uniform(box, generator) if self.random_start or restart else center
            self._ascend(logits, box, torch.stack([labels, target], 1), x, best)
        return best.x

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the objective: targeted where ``labels`` are pairs (label, target), else as in every attack."""
        if labels.ndim == 1:
            return super().value(logits, labels) if self.objective == "ce" else _worst_margin(logits, labels)
        label, target = logits.gather(1, labels).unbind(1)
        if self.objective == "ce":
            return logits.log_softmax(1).gather(1, labels[:, 1:]).squeeze(1)
        if self.objective == "margin" or logits.shape[1] < 4:
            return target - label
        largest = logits.topk(4, dim=1).values
        scale = largest[:, 0] - largest[:, 2:].mean(1)
        return (target - label) / scale.clamp_min(torch.finfo(logits.dtype).tiny)


def _worst_margin(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.gather(1, other_classes(labels, logits.shape[1]))
    return others.amax(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
