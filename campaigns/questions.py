"""Questions about a network: boxes, and points of them at which the margins are low."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from campaigns.networks import Subject
from expressive_losses.attacks.pgd import Pgd
from expressive_losses.bounds import use_statistics
from expressive_losses.types import Box, margins_of


@dataclass(frozen=True)
class Question:
    """Boxes, and what was found in them.

    Attributes:
        box: (B, *shape).
        labels: (B,).
        lowest: the smallest margins found, (B, K-1): a lower bound above one of them is none.
        scale: 1 + the largest logit of each box, (B, 1): what rounding is relative to.
        points: how many were tried in each box, but for grids.
        grid: how many points of grids were tried, over all boxes.
    """

    box: Box
    labels: Tensor
    lowest: Tensor
    scale: Tensor
    points: int
    grid: int = 0

    def __len__(self) -> int:
        return len(self.box)


def random_question(subject: Subject, seed: int, samples: int) -> Question:
    """Return random boxes with points of every kind; networks of two inputs get a grid as well.

    Args:
        samples: uniform points and corners of each box, besides an attack's.
    """
    box, labels = random_boxes(subject, seed)
    points = _points(box, seed, samples) + _attacked(subject, box, labels, seed)
    lowest, grid = _margins(subject, points, labels).amin(0), 0
    if len(subject.network.shape) == 1:
        on_grid, grid = _grid(subject, box, labels)
        lowest = torch.minimum(lowest, on_grid)
    scale = 1 + torch.stack([subject.logits(x).abs().amax(1) for x in points[:20]]).amax(0).unsqueeze(1)
    return Question(box, labels, lowest, scale, len(points), grid)


def random_boxes(subject: Subject, seed: int, count: int = 6) -> tuple[Box, Tensor]:
    """Return boxes in [0, 1] and a label for each: balls of many radii, odd-shaped, degenerate, a point, everything."""
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = (count, *subject.network.shape), subject.dtype
    x = torch.rand(shape, generator=generator, dtype=dtype)
    other = torch.rand(shape, generator=generator, dtype=dtype)
    radius = torch.tensor([0.0, 0.003, 0.03, 0.1, 0.3, 1.0], dtype=dtype)[torch.arange(count) % 6]
    ball = Box.around(x, radius.view(-1, *[1] * (x.dim() - 1)))
    kind = torch.randint(3, (count,), generator=generator).view(-1, *[1] * (x.dim() - 1))
    flat = torch.rand(shape, generator=generator) < 0.5  # these inputs do not move
    low, high = torch.minimum(x, other), torch.maximum(x, other)
    lower = torch.where(kind == 0, low, torch.where((kind == 1) & flat, x, ball.lower))
    upper = torch.where(kind == 0, high, torch.where((kind == 1) & flat, x, ball.upper))
    lower[0], upper[0] = x[0], x[0]
    box = Box(lower, upper)
    labels = subject.logits(box.center).argmax(1)
    wrong = torch.rand(count, generator=generator) < 0.2
    return box, torch.where(wrong, (labels + 1) % subject.network.classes, labels)


def close_calls(subject: Subject, seed: int, tries: int = 30, most: int = 8) -> Question | None:
    """Return boxes that only just hold a counterexample: whatever proves these too much, proves a lie.

    Random boxes are shrunk towards their centres, as far as the margin on the way to their worst point is negative, and
    2 % less.

    Args:
        tries: how many boxes; those with a right centre and a counterexample are taken.
        most: how many of them.
    """
    box, labels = random_boxes(subject, seed + 1_000_000, tries)
    points = _points(box, seed, 40)
    margins = _margins(subject, points, labels)
    worst = torch.stack(points)[margins.amin(2).argmin(0), torch.arange(len(box))]
    taken = (margins_of(subject.logits(box.center), labels) > 0).all(1) & (margins < 0).any(2).any(0)
    box, labels, worst = box[taken][:most], labels[taken][:most], worst[taken][:most]
    if not len(box):
        return None
    share = _shares(subject, box, labels, worst)
    size = (1.02 * share).clamp(max=1)
    center = box.center
    small = Box(center.lerp(box.lower, size), center.lerp(box.upper, size))
    points = [small.clamp(center.lerp(worst, part)) for part in (share, size)]
    scale = 1 + subject.logits(center).abs().amax(1, keepdim=True)
    return Question(small, labels, _margins(subject, points, labels).amin(0), scale, len(points))


def _shares(subject: Subject, box: Box, labels: Tensor, worst: Tensor) -> Tensor:
    """Return how far from the centre to a counterexample there is one already, by bisection; (B, 1, ..., 1)."""
    wide = (-1, *[1] * len(subject.network.shape))
    low, high = torch.zeros(len(box), dtype=subject.dtype), torch.ones(len(box), dtype=subject.dtype)
    for _ in range(25):
        middle = (low + high) / 2
        wrong = (margins_of(subject.logits(box.center.lerp(worst, middle.view(wide))), labels) < 0).any(1)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return high.view(wide)


def _margins(subject: Subject, points: list[Tensor], labels: Tensor) -> Tensor:
    """Return the margins of points of each box, (P, B, K-1)."""
    return torch.stack([margins_of(subject.logits(x), labels) for x in points])


def _points(box: Box, seed: int, samples: int) -> list[Tensor]:
    """Return points of every box, each (B, *shape): uniform ones, corners, the centre."""
    generator = torch.Generator().manual_seed(seed)
    points = [box.lower, box.upper, box.center]
    for index in range(samples):
        x = box.sample(generator)
        points.append(torch.where(x > box.center, box.upper, box.lower) if index % 2 else x)
    return points


def _attacked(subject: Subject, box: Box, labels: Tensor, seed: int) -> list[Tensor]:
    """Return what a gradient attack finds, each (B, *shape)."""
    generator = torch.Generator().manual_seed(seed)

    def logits(x: Tensor) -> Tensor:
        with use_statistics(subject.network, subject.statistics):
            return subject.network(x)

    kinds = (("margin", 0.1), ("margin", 0.5), ("ce", 0.25))
    attacks = [Pgd(steps=15, step_size=step, objective=objective) for objective, step in kinds]
    return [attack(logits, box, labels, generator) for attack in attacks]


def _grid(subject: Subject, box: Box, labels: Tensor, ticks: int = 101) -> tuple[Tensor, int]:
    """Return the smallest margins over a grid of each box of two inputs, and how many points that were."""
    line = torch.linspace(0, 1, ticks, dtype=subject.dtype)
    grid = torch.cartesian_prod(line, line)
    lowest = []
    for row in range(len(box)):
        one = box[row : row + 1]
        x = one.clamp(one.lower + grid * (one.upper - one.lower))
        lowest.append(margins_of(subject.logits(x), labels[row].expand(len(x))).amin(0))
    return torch.stack(lowest), len(grid) * len(box)
