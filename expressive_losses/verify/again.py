"""What :mod:`expressive_losses.verify.check` computes again: points, attacks and bounds, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of
from expressive_losses.verify.base import Problem, Verifier, scale_of
from expressive_losses.verify.cascade import Cascade, Outcome
from expressive_losses.verify.evaluation import pixels
from expressive_losses.verify.ledger import Row
from expressive_losses.verify.radius import RadiusRow

OneRow = TypeVar("OneRow", Row, RadiusRow)


class Again(Generic[OneRow]):
    """The images of a ledger, or of its radii, and what is needed to compute their rows again.

    Args:
        head: of the ledger.
        network: float64, without the fast path for chains.
        images, labels: of the data set, as the ledger was asked for.
        radius: of the box of a row, pixel units.
        tolerance: of logits, relative to the largest.
        batch_size: images at once; ``None`` chooses.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        network: BoundedNetwork,
        images: Tensor,
        labels: Tensor,
        radius: Callable[[OneRow], float],
        tolerance: float,
        batch_size: int | None,
    ) -> None:
        self.head, self.network, self.labels = head, network, labels
        self._images, self._radius = images, radius
        self._tolerance, self._batch_size = tolerance, batch_size
        self._dtype = getattr(torch, head["dtype"])
        self.kinds = {stage["name"]: VERIFIERS[stage["name"]].kind for stage in head["stages"]}

    def batches(self, rows: Iterable[OneRow], size: int | None = None) -> Iterable[Sequence[OneRow]]:
        """Return the rows of images that are there, in batches."""
        rows, size = [row for row in rows if row.index < len(self._images)], size or self._batch_size or 256
        return (rows[begin : begin + size] for begin in range(0, len(rows), size))

    def pixels(self, batch: Sequence[OneRow]) -> Tensor:
        """Return the images of rows, float64, pixel units."""
        device = self.network.mean.device
        return pixels(self._images[[row.index for row in batch]].to(device), torch.float64)

    def labels_of(self, batch: Sequence[OneRow]) -> Tensor:
        """Return the labels of rows, (B,)."""
        return self.labels[[row.index for row in batch]].to(self.network.mean.device)

    def margins(self, x: Tensor, batch: Sequence[OneRow]) -> tuple[list[float], list[float]]:
        """Return the worst margins at points, and what the run's may differ from them by."""
        with torch.no_grad():
            logits = self.network(x)
        rounding = self.network.rounding().usual(Box(x, x), self._dtype)
        slack = torch.maximum(self._tolerance * scale_of(logits), rounding)
        return margins_of(logits, self.labels_of(batch)).min(1).values.tolist(), slack.tolist()

    def problem(self, batch: Sequence[OneRow], seed: int = 0) -> Problem:
        """Return the question that rows answer."""
        x = self.pixels(batch)
        radii = x.new_tensor([self._radius(row) for row in batch]).view(-1, *[1] * (x.ndim - 1))
        return Problem.of(self.network, x, self.labels_of(batch), radii, [row.index for row in batch], seed)

    def run(self, stages: Sequence[Verifier], rows: Iterable[OneRow], seed: int) -> Iterable[Outcome]:
        """Yield what stages say of the rows' images now."""
        cascade = Cascade(stages, self._batch_size)
        for batch in self.batches(rows, cascade.chunk_size(self.network.mean.device)):
            for outcomes in cascade(self.network, self.problem(batch, seed)):
                yield from outcomes

    def stages_up_to(self, name: str) -> list[Verifier]:
        """Return the ledger's stages that can prove, up to one of them.

        What a solver of MIPs says is not taken on the word of the same solver: branch-and-bound is asked before it.
        """
        specs = [spec for spec in self.head["stages"] if self.kinds[spec["name"]] in ("bound", "complete")]
        names = [spec["name"] for spec in specs]
        specs = specs[: names.index(name) + 1]
        if name == "mip" and "bab" not in names:
            specs.insert(-1, {"name": "bab", "timeout": specs[-1]["timeout"]})
        return [VERIFIERS.build(spec) for spec in specs]

    def rounding(self, rows: Iterable[OneRow]) -> dict[int, tuple[float, float]]:
        """Return, by index, what rounding may add to a bound at worst: in the run's precision, and here."""
        found = {}
        for batch in self.batches(rows):
            box = self.problem(batch).box
            here, there = (self.network.rounding().over(box, dtype).tolist() for dtype in (None, self._dtype))
            found |= {row.index: both for row, both in zip(batch, zip(there, here, strict=True), strict=True)}
        return found

    def thresholds(self, batch: Sequence[Row]) -> list[float]:
        """Return what the margin of each row that a stage has verified must exceed, by the stage's own tolerance."""
        stages = {spec["name"]: VERIFIERS.build(spec) for spec in self.head["stages"]}
        with torch.no_grad():
            scales = scale_of(self.network(self.pixels(batch))).tolist()
        return [
            stage.least_margin(scale) if (stage := stages.get(row.decided_by)) else 0.0
            for row, scale in zip(batch, scales, strict=True)
        ]
