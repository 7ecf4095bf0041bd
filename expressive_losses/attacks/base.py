"""What every attack shares: the objective, the start, and the projected ascent with its best iterate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.registry import Plugin
from expressive_losses.types import Box, margins_of

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OfWholeBatch:
    """Noise for the rows ``start`` to ``stop`` out of a draw for all ``total``, however the batch is shared out."""

    generator: torch.Generator
    start: int
    stop: int
    total: int


#: Where randomness comes from: one generator for the batch, or for a batch of which these are some rows, one for each
#: sample (then a sample's noise does not depend on which others share its batch), or ``None`` for torch's global one.
Randomness = torch.Generator | OfWholeBatch | Sequence[torch.Generator] | None
#: Where an attack starts that does not start at random; ``None``: at the centre of the box.
Start = Tensor | None
Update = Callable[[Tensor], Tensor]


class Attack(Plugin, ABC):
    """Searches a box for the point with the largest objective.

    The caller chooses the mode of the network (eval, or which BatchNorm statistics). Works under
    ``torch.no_grad()`` and differentiates with respect to the input only, so no parameter's ``.grad`` is
    touched.

    Attributes:
        objective: "ce" is the cross-entropy; "margin" is max_j f_j - f_y over the classes j != y, > 0 when
            misclassified; "kl" is the divergence from the prediction at ``start`` (TRADES).
    """

    objective: Literal["ce", "margin", "kl"] = "ce"

    @abstractmethod
    def __call__(
        self, logits: Logits, box: Box, labels: Tensor, generator: Randomness = None, start: Start = None
    ) -> Tensor:
        """Return one point of each box, (B, *image), detached.

        Args:
            logits: maps images (B, *image) in pixel units to logits (B, K).
            box: the region, pixel units.
            labels: (B,) int64.
            generator: of the random start; see :data:`Randomness`.
            start: where the attack starts if it does not start at random, usually the clean images; (B,
                *image), projected on the box. ``None``: the centre of the box.
        """

    def targets(self, logits: Logits, box: Box, labels: Tensor, start: Start) -> Tensor:
        """Return what :meth:`value` compares with: the labels, or for "kl" the probabilities at ``start``, (B, K)."""
        if self.objective != "kl":
            return labels
        with torch.no_grad():
            return logits(starting_point(box, start)).softmax(1)

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the objective of each sample, (B,), from the logits (B, K).

        The cross-entropy from given probabilities is the divergence plus a constant.
        """
        if self.objective != "margin":
            return F.cross_entropy(logits, labels, reduction="none")
        return -margins_of(logits, labels).min(1).values

    def value_and_gradient(self, logits: Logits, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (B,) and its gradient with respect to the input (B, *image), both detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.value(logits(x), labels)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient


class IterativeAttack(Attack):
    """Projected ascent: x <- clamp(x + step_size * half_width * update(gradient)) to the box.

    With one step, the final point is returned, as in the published code. With more, the iterate (the start
    and the final point included, over all restarts) with the largest objective, sample by sample.

    Attributes:
        steps: gradient steps of each restart.
        step_size: relative to the elementwise half-width of the (clipped) box.
        restarts: independent ascents; from the second on they start at random.
        random_start: start uniformly in the box, not at ``start``.
    """

    steps: int = Field(default=40, ge=1)
    step_size: float = Field(default=0.1, gt=0)
    restarts: int = Field(default=1, ge=1)
    random_start: bool = True

    @abstractmethod
    def new_update(self) -> Update:
        """Return the map from gradients to updates of one ascent; it may keep state between its calls."""

    def size_of(self, step: int) -> float:
        """Return the size of a step, counted from 0, relative to the half-width of the box."""
        return self.step_size

    def __call__(self, logits: Logits, box: Box, labels: Tensor, generator: Randomness = None, start: Start = None):
        labels, best = self.targets(logits, box, labels, start), None
        for restart in range(self.restarts):
            x = uniform(box, generator) if self.random_start or restart else starting_point(box, start)
            if best is None:
                best = _Best(x)
            x = self._ascend(logits, box, labels, x, best)
        if self.steps == self.restarts == 1:
            return x
        return best.x

    def _ascend(self, logits: Logits, box: Box, labels: Tensor, x: Tensor, best: _Best) -> Tensor:
        update, half_width = self.new_update(), box.half_width
        for step in range(self.steps):
            value, gradient = self.value_and_gradient(logits, x, labels)
            if self.steps > 1:
                best.offer(x, value)
            x = box.clamp(x + self.size_of(step) * half_width * update(gradient))
        if self.steps > 1 or self.restarts > 1:  # else nobody asks for the value, and a forward pass is saved
            with torch.no_grad():
                best.offer(x, self.value(logits(x), labels))
        return x


class _Best:
    """The best point seen for each sample. A NaN never wins; everything stays on the device."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.value = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)

    def offer(self, x: Tensor, value: Tensor) -> None:
        """Keep what is larger, sample by sample."""
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        self.x = torch.where(per_sample(better, x), x, self.x)


def starting_point(box: Box, start: Start) -> Tensor:
    """Return ``start`` projected on the box, or the centre of the box."""
    return box.clamp(box.center if start is None else start.detach().to(box.lower))


def uniform(box: Box, generator: Randomness = None) -> Tensor:
    """Return one uniform point of each box; the noise is drawn on the generator's device."""
    if generator is None or isinstance(generator, torch.Generator):
        noise = _noise(box.lower.shape, box.lower, generator)
    elif isinstance(generator, OfWholeBatch):
        shape = torch.Size([generator.total, *box.lower.shape[1:]])
        noise = _noise(shape, box.lower, generator.generator)[generator.start : generator.stop]
    else:
        noise = torch.stack([_noise(box.lower.shape[1:], box.lower, one) for one in generator])
    return box.clamp(box.lower + noise.to(box.lower.device) * (box.upper - box.lower))


def _noise(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype)


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Return (B,) values shaped (B, 1, ..., 1), to be combined with images (B, *image)."""
    return value.view(-1, *[1] * (like.ndim - 1))
