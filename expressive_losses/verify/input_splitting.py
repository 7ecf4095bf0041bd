"""Branch-and-bound on the input: halve the box until bounds prove every part. For few inputs, any layer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UnsupportedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of
from expressive_losses.verify.base import (
    DEFAULT_TOLERANCE,
    Problem,
    Status,
    Verdict,
    Verifier,
    combined,
    is_counterexample,
    logits_of,
    undecided,
)
from expressive_losses.verify.evaluation import computing_in
from expressive_losses.verify.incomplete import margins_by
from expressive_losses.verify.precise import in_float64


@VERIFIERS.register("input-bab")
class InputSplitting(Verifier):
    """Input splitting with CROWN on the sub-boxes: complete for networks of up to about 20 inputs.

    Each open sub-box is halved along the side with the largest half-width times abs(gradient of its worst margin).

    Attributes:
        timeout: seconds for each image; images that share batches share their time equally.
        max_nodes: sub-boxes bounded for each image.
        batch: sub-boxes in one bounding call.
        bound: of a sub-box; "crown", "crown_ibp" or "ibp".
        max_inputs: the number of splits that are needed grows exponentially with the inputs.
        tolerance: see :meth:`expressive_losses.verify.base.Problem.threshold`.
    """

    kind: ClassVar[str] = "complete"
    batch_sizes: ClassVar[tuple[int, int]] = (16, 256)
    timeout: float = Field(default=60.0, gt=0)
    max_nodes: int = Field(default=200_000, ge=1)
    batch: int = Field(default=256, ge=2)
    bound: Literal["ibp", "crown_ibp", "crown"] = "crown"
    max_inputs: int = Field(default=20, ge=1)
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0)

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        inputs = problem.images[0].numel() if len(problem) else 0
        if inputs > self.max_inputs:
            raise UnsupportedNetwork(
                f"bound '{self.name}': the network has {inputs} inputs, and splitting is for up to "
                f"{self.max_inputs} (max_inputs); use bab"
            )
        if problem.is_late():
            return undecided(problem)
        search = _Search(self, network, problem)
        if torch.isfinite(logits_of(network, problem.images)).all():  # with NaN weights no sub-box is ever decided
            search.run()
        return search.verdict()


@dataclass
class _Cover:
    """The open sub-boxes of one image: a partition of what is not proven yet."""

    row: int
    box: Box
    margins: Tensor
    closed: Tensor
    nodes: int = 0
    seconds: float = 0.0
    given_up: bool = False
    witness: Tensor | None = field(default=None)

    @property
    def running(self) -> bool:
        return self.witness is None and not self.given_up and len(self.box) > 0

    def pop(self, count: int) -> tuple[Box, Tensor]:
        """Remove and return the ``count`` sub-boxes with the worst margins."""
        order = self.margins.amin(1).argsort()
        box, margins = self.box[order], self.margins[order]
        self.box, self.margins = box[count:], margins[count:]
        return box[:count], margins[:count]

    def push(self, box: Box, margins: Tensor) -> None:
        self.box = Box(torch.cat([self.box.lower, box.lower]), torch.cat([self.box.upper, box.upper]))
        self.margins = torch.cat([self.margins, margins])


class _Search:
    """The sub-boxes of all images of one problem, bounded in shared batches."""

    def __init__(self, settings: InputSplitting, network: BoundedNetwork, problem: Problem) -> None:
        self._settings, self._network, self._problem = settings, network, problem
        self._exact = in_float64(network, problem)
        _, exact = self._exact
        self._threshold = exact.threshold(settings.tolerance)
        proven = (exact.margins > self._threshold.unsqueeze(1)).all(1).tolist()
        self._covers = [self._cover(exact, row) for row in range(len(problem)) if not proven[row]]
        self._ruled_out = proven

    def _cover(self, exact: Problem, row: int) -> _Cover:
        one = slice(row, row + 1)
        closed = torch.full_like(exact.margins[row], torch.inf)
        return _Cover(row, exact.box[one], exact.margins[one], closed)

    def run(self) -> None:
        """Bound, then halve until nothing is left or a limit is reached."""
        first = True
        while not self._problem.is_late():
            covers = [cover for cover in self._covers if cover.running]
            if not covers:
                return
            began = time.monotonic()
            self._round(covers, halve=not first)
            first = False
            self._charge(covers, began)

    def verdict(self) -> Verdict:
        """Return VERIFIED where no sub-box is open, with the smallest margins over the partition."""
        problem = self._problem
        margins, witness = combined(problem, self._exact[1].margins), problem.images.clone()
        status = [Status.VERIFIED if one else Status.UNKNOWN for one in self._ruled_out]
        for cover in self._covers:
            if cover.witness is not None:
                status[cover.row], witness[cover.row] = Status.FALSIFIED, cover.witness
                continue
            found = torch.cat([cover.margins, cover.closed[None]]).amin(0)
            margins[cover.row] = torch.fmax(margins[cover.row], found.to(margins))
            if len(cover.box) == 0 and (found > self._threshold[cover.row]).all():
                status[cover.row] = Status.VERIFIED
        return Verdict(tuple(status), margins, witness)

    def _round(self, covers: list[_Cover], halve: bool) -> None:
        """Take the worst sub-boxes of each image, halve them and bound the halves."""
        share = max(1, self._settings.batch // (2 * len(covers)))
        popped = [cover.pop(share) for cover in covers]
        owner = torch.cat([torch.full((len(box),), at) for at, (box, _) in enumerate(popped)])
        box = Box(torch.cat([b.lower for b, _ in popped]), torch.cat([b.upper for b, _ in popped]))
        known = torch.cat([margins for _, margins in popped])
        rows = torch.tensor([cover.row for cover in covers])[owner].to(self._problem.labels.device)
        if halve:
            box = _halves(box, self._side(box, rows))
            known, rows, owner = known.repeat(2, 1), rows.repeat(2), owner.repeat(2)
        margins = self._bound(box, rows, known)
        self._look(covers, box, rows, owner)
        proven = (margins > self._threshold[rows].unsqueeze(1)).all(1)
        for at, cover in enumerate(covers):
            mine = (owner == at).to(proven.device)
            cover.nodes += int(mine.sum())
            done = margins[mine & proven]
            if len(done):
                cover.closed = torch.minimum(cover.closed, done.amin(0))
            cover.push(box[mine & ~proven], margins[mine & ~proven])

    def _bound(self, box: Box, rows: Tensor, known: Tensor) -> Tensor:
        settings = self._settings
        network, _ = self._exact
        with computing_in(network.mean.dtype):
            found = margins_by(settings.name, network, box, self._problem.labels[rows], settings.bound)
        found = torch.where(torch.isfinite(found), found, -torch.inf)
        return torch.maximum(found, known)  # what held on the larger box holds on its halves

    def _gradient(self, box: Box, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            x = box.center.detach().to(self._problem.images).requires_grad_()
            worst = margins_of(self._network(x), self._problem.labels[rows]).amin(1)
            (gradient,) = torch.autograd.grad(worst.sum(), x)
        return gradient.to(box.lower)

    def _side(self, box: Box, rows: Tensor) -> Tensor:
        """Return the input to split, (N,): a flat position. A dead gradient falls back to the widest side."""
        influence = (self._gradient(box, rows).abs() + 1e-3) * box.half_width
        return influence.flatten(1).argmax(1)

    def _look(self, covers: list[_Cover], box: Box, rows: Tensor, owner: Tensor) -> None:
        """Try the centre of each sub-box and the corner that the gradient points to."""
        gradient = self._gradient(box, rows)
        whole, labels = self._problem.box[rows], self._problem.labels[rows]
        for x in (box.center, torch.where(gradient > 0, box.lower, box.upper)):
            x = whole.clamp(x.to(whole.lower))
            for at in is_counterexample(self._network, whole, labels, x).nonzero().squeeze(1).tolist():
                covers[owner[at]].witness = x[at]

    def _charge(self, covers: list[_Cover], began: float) -> None:
        share = (time.monotonic() - began) / len(covers)
        for cover in covers:
            cover.seconds += share
            cover.given_up = cover.seconds >= self._settings.timeout or cover.nodes >= self._settings.max_nodes


def _halves(box: Box, side: Tensor) -> Box:
    """Return both halves of each box, first all lower ones."""
    middle = box.center.flatten(1).gather(1, side.unsqueeze(1))
    shape = box.lower.shape
    below = box.upper.flatten(1).scatter(1, side.unsqueeze(1), middle).view(shape)
    above = box.lower.flatten(1).scatter(1, side.unsqueeze(1), middle).view(shape)
    return Box(torch.cat([box.lower, above]), torch.cat([below, box.upper]))
