"""What a verifier is asked, what it answers, and when an answer counts."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.rounding import Rounding
from expressive_losses.errors import UserError, is_out_of_memory
from expressive_losses.registry import Plugin
from expressive_losses.types import Box, margins_of

#: A margin counts as proven positive when its bound, computed in floating point, exceeds this times the largest
#: abs(logit) of the clean image, or times 1 if that is smaller, and what rounding can add up to at worst on the way
#: through the layers: see :meth:`Problem.threshold`. Measured on trained networks, whose logits are of the order of 10,
#: float32 bounds err by up to 9.3e-6 of the largest logit (docs/verification.md): hence about ten times that.
DEFAULT_TOLERANCE = 1e-4


class Status(str, Enum):
    """What is known of one image. Only VERIFIED counts towards verified accuracy."""

    MISCLASSIFIED = "misclassified"
    FALSIFIED = "falsified"
    VERIFIED = "verified"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Problem:
    """A batch of images to decide, and what is known of them so far.

    Attributes:
        images: pixel units, (B, *image).
        labels: (B,) int64.
        box: the region in which the prediction must not change, around ``images``.
        logits: of the images, (B, K).
        margins: the best lower bounds so far on f_y - f_j, classes j != y ascending; (B, K-1), -inf where
            none is known.
        indices: of the images in the data set; with ``seed`` they decide all randomness.
        seed: of the run.
        deadline: on the clock of :func:`time.monotonic`, or ``None``.
        rounding: of the network's margins; ``None``: taken as 0.
    """

    images: Tensor
    labels: Tensor
    box: Box
    logits: Tensor
    margins: Tensor
    indices: tuple[int, ...]
    seed: int = 0
    deadline: float | None = None
    rounding: Rounding | None = None

    @classmethod
    def of(
        cls,
        network: BoundedNetwork,
        images: Tensor,
        labels: Tensor,
        eps: float | Tensor,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        deadline: float | None = None,
    ) -> Problem:
        """Return the problem for the l_inf balls of radius ``eps``, with nothing known yet.

        ``eps`` is in pixel units: a number, or one an image, (B, 1, ..., 1).
        """
        margins = images.new_full((len(images), network.classes - 1), -torch.inf)
        indices = tuple(range(len(images)) if indices is None else indices)
        logits = logits_of(network, images)
        box = Box.around(images, eps)
        return cls(images, labels, box, logits, margins, indices, seed, deadline, network.rounding())

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int], margins: Tensor | None = None) -> Problem:
        """Return the problem of some of the images, by position, with the margins known by now."""
        at = torch.as_tensor(rows, dtype=torch.long, device=self.labels.device)
        margins = self.margins if margins is None else margins
        indices = tuple(self.indices[row] for row in rows)
        kept = (self.images[at], self.labels[at], self.box[at], self.logits[at], margins[at])
        return Problem(*kept, indices, self.seed, self.deadline, self.rounding)

    def threshold(self, tolerance: float) -> Tensor:
        """Return what a margin's lower bound must exceed to count as proven, (B,).

        ``tolerance * scale_of(logits)``, or what rounding errors can add up to at worst if that is more: over the box
        in float64, over all boxes in float32 (:class:`expressive_losses.bounds.rounding.Rounding`). Every verifier must
        use this one rule; what float32 cannot prove by it, float64 may (:mod:`expressive_losses.verify.precise`).
        """
        relative = tolerance * scale_of(self.logits)
        if self.rounding is None:
            return relative
        if relative.dtype != torch.float64:
            return relative.clamp_min(self.rounding.everywhere)
        return torch.maximum(relative, self.rounding.over(self.box))

    def proven(self, margins: Tensor, tolerance: float) -> Tensor:
        """Return where every margin (B, K-1) exceeds :meth:`threshold`, (B,) bool.

        In float64 the rounding over a box is only computed where a margin is not above that over all boxes: seldom.
        """
        worst = margins.amin(1)
        found = worst > tolerance * scale_of(self.logits)
        if self.rounding is None:
            return found
        above = worst > self.rounding.everywhere
        close = (found & ~above).nonzero().squeeze(1)
        found &= above
        if len(close) and worst.dtype == torch.float64:
            found[close] = worst[close] > self.rounding.over(self.box[close])
        return found

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return one CPU generator for each image, seeded by (seed, index, purpose) alone.

        So an image's noise depends neither on its batch nor on where an interrupted run was resumed.
        """
        return [torch.Generator().manual_seed(_hash(self.seed, index, purpose)) for index in self.indices]

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def scale_of(logits: Tensor) -> Tensor:
    """Return what rounding errors are relative to: the largest abs(logit), at least 1; (B, K) -> (B,).

    NaN where a logit is: then no bound exceeds the threshold.
    """
    return logits.abs().amax(1).clamp_min(1.0)


@torch.no_grad()
def logits_of(network: BoundedNetwork, images: Tensor) -> Tensor:
    """Return the logits (B, K); a batch that does not fit into memory is halved.

    Raises:
        UserError: when one image alone does not fit.
    """
    try:
        return network(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if len(images) == 1:
        raise UserError(f"one image does not fit into the memory of {images.device}; choose another --device")
    half = len(images) // 2
    return torch.cat([logits_of(network, images[:half]), logits_of(network, images[half:])])


def _hash(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # manual_seed takes a signed 64-bit number


@dataclass(frozen=True)
class Verdict:
    """A verifier's answer to a :class:`Problem`.

    Attributes:
        status: of each image.
        margins: the best lower bounds known now, those of the problem included; (B, K-1), never NaN.
        witness: where FALSIFIED, a point of the box that is not classified as the label; (B, *image), or
            ``None``.
        predictions: argmax on the clean images, (B,) int64, from the verifier that computed it.
    """

    status: tuple[Status, ...]
    margins: Tensor
    witness: Tensor | None = None
    predictions: Tensor | None = None

    @property
    def worst(self) -> Tensor:
        """The smallest margin of each image, (B,)."""
        return self.margins.min(1).values


class Verifier(Plugin, ABC):
    """Decides images of a problem, or leaves them unknown. One stage of a cascade.

    Attributes:
        kind: "clean" looks at the images, "attack" for counterexamples only, "bound" for proofs only,
            "complete" for both.
        batch_sizes: images at once on a CPU and on an accelerator, if the user names no size.
        reproducible: whether its bounds are mere arithmetic, the same in any precision up to rounding: no search, no
            optimiser, no clock.
        least_tolerance: a smaller ``tolerance`` could take the method's own errors for proofs;
            :func:`expressive_losses.verify.cascade.build_stages` refuses it.
    """

    kind: ClassVar[Literal["clean", "attack", "bound", "complete"]]
    batch_sizes: ClassVar[tuple[int, int]] = (256, 2048)
    reproducible: ClassVar[bool] = False
    least_tolerance: ClassVar[float] = 0.0

    @abstractmethod
    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        """Return what can be said of each image. Must be sound; should stop at ``problem.deadline``.

        Args:
            network: in eval mode, of the device and dtype of ``problem``.
            problem: what to decide; every image of it is still undecided.
        """

    def least_margin(self, scale: float) -> float:
        """Return what the recorded margin of an image that this stage verified exceeds.

        Args:
            scale: :func:`scale_of` the logits.
        """
        return getattr(self, "tolerance", 0.0) * scale

    def batch_size(self, device: torch.device) -> int:
        """Return how many images to take at once on ``device``."""
        return self.batch_sizes[device.type != "cpu"]


def combined(problem: Problem, margins: Tensor) -> Tensor:
    """Return the elementwise maximum of the known margins and new ones; what is not finite proves nothing.

    Bounds of several methods hold together, so each class may be excluded by another method. +inf is dropped
    with NaN: auto_LiRPA turns NaN bounds into infinities.
    """
    usable = torch.where(torch.isfinite(margins), margins.detach(), -torch.inf)
    return torch.maximum(problem.margins, usable.to(problem.margins))


def undecided(problem: Problem) -> Verdict:
    """Return UNKNOWN for every image, with what was known before."""
    return Verdict((Status.UNKNOWN,) * len(problem), combined(problem, problem.margins))


def verdict_of_bounds(problem: Problem, margins: Tensor, tolerance: float) -> Verdict:
    """Return VERIFIED where every margin, the best of old and new, exceeds the threshold, else UNKNOWN."""
    best = combined(problem, margins)
    proven = problem.proven(best, tolerance).tolist()
    return Verdict(tuple(Status.VERIFIED if one else Status.UNKNOWN for one in proven), best)


def is_counterexample(network: BoundedNetwork, box: Box, labels: Tensor, x: Tensor) -> Tensor:
    """Return where ``x`` refutes the label: in the box, exactly, and f_j(x) >= f_y(x) for a class j != y;
    (B,) bool.

    One forward pass of the plain network, in its own precision: the network as it is deployed. NaN logits refute
    nothing. VERIFIED says f_y - f_j > 0 everywhere, in exact arithmetic; where a margin is smaller than the rounding of
    a forward pass, a point that refutes the deployed network may exist all the same.
    """
    with torch.no_grad():
        margins = margins_of(network(x), labels)
    return box.contains(x) & (margins <= 0).any(1) & torch.isfinite(margins).all(1)
