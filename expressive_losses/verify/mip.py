"""Exact verdicts by mixed-integer programming, for small networks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from numpy import ndarray
from pydantic import Field
from scipy import sparse
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork, BoundMethod
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import LayerGraph
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, other_classes
from expressive_losses.verify.base import (
    DEFAULT_TOLERANCE,
    Problem,
    Status,
    Verdict,
    Verifier,
    combined,
    is_counterexample,
    undecided,
)
from expressive_losses.verify.evaluation import computing_in, evaluation_copy
from expressive_losses.verify.mip_model import Encoded, Solution, encode, intervals, matrices_of
from expressive_losses.verify.precise import CHEAP, in_float64


@VERIFIERS.register("mip")
class Mip(Verifier):
    """Mixed-integer programming with HiGHS, class by class: exact, for small networks.

    For every class that is not excluded yet, min f_y - f_j over the box. VERIFIED when the solver's proven lower bound
    exceeds the threshold for each of them; FALSIFIED when the network itself misclassifies a point that the
    solver found. Where the time is over and not enough is proven, the linear relaxation is tried; else UNKNOWN.

    HiGHS lets a constraint fail by 1e-6 and takes 1e-6 for 0, and such errors grow on their way through the network:
    every variable and constraint is scaled to 1, and what the tolerances can add up to (:class:`Encoded`) is taken off
    the solver's lower bounds.

    Attributes:
        timeout: seconds for one image, all classes together.
        lp_timeout: seconds for the relaxation of one class.
        first: bounds, in float64, that may spare the solver a class; none: it minimises every one.
        bounds: how the hidden layers are bounded, beside interval arithmetic (which is used alone where auto_LiRPA
            cannot bound a layer).
        gap: stop when (best value - lower bound) / best value is at most this: from a value below 1 on, the sign of the
            minimum is known. 0 finds the minimum itself.
        tolerance: see :meth:`expressive_losses.verify.base.Problem.threshold`. Of the solver's bounds, the threshold is
            taken off before they are recorded.

    Source: Tjeng, Xiao, Tedrake (2019); time limit and relaxation as in Gowal et al. (2018), section 4.
    """

    kind: ClassVar[str] = "complete"
    batch_sizes: ClassVar[tuple[int, int]] = (1, 1)  # a row is written when its batch is through
    timeout: float = Field(default=600.0, gt=0)
    lp_timeout: float = Field(default=60.0, gt=0)
    first: tuple[BoundMethod, ...] = (*CHEAP, "crown")
    bounds: Literal["ibp", "crown", "alpha_crown"] = "crown"
    gap: float = Field(default=0.5, ge=0, lt=1)
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0)
    least_tolerance: ClassVar[float] = 1e-4

    def least_margin(self, scale: float) -> float:
        return 0.0  # the threshold is taken off

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        if problem.is_late():
            return undecided(problem)
        copied, asked = in_float64(network, problem, self.first)
        exact = _Exact.of(copied)
        status, margins, witness = [], combined(problem, problem.margins), problem.images.clone()
        for row in range(len(problem)):
            if exact is None or problem.is_late():
                status.append(Status.UNKNOWN)
                continue
            image = _Image(self, network, exact, problem.select([row]), asked.select([row]))
            status.append(image.decide())
            margins[row] = torch.maximum(margins[row], image.margins.to(margins))
            witness[row] = image.witness
        return Verdict(tuple(status), margins, witness)


@dataclass(frozen=True)
class _Exact:
    """The network in float64 on the CPU: bounded, and layer by layer with their matrices."""

    network: BoundedNetwork
    graph: LayerGraph
    matrices: Sequence[sparse.csr_matrix | None]
    order: tuple[int, ...] | None

    @classmethod
    def of(cls, network: BoundedNetwork) -> _Exact | None:
        """Return it, or ``None`` for weights that are not finite: nothing can be proven of them."""
        if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
            return None
        copy = evaluation_copy(network, torch.device("cpu"), torch.float64)
        graph = extract(copy.model, copy.shape, copy.mean)
        return cls(copy, graph, matrices_of(graph), _order_of_relus(copy, graph))

    def intervals(self, box: Box, labels: Tensor, method: str) -> list[Box]:
        """Return bounds on every layer's output; the box in pixel units, of one image."""
        normalised = Box(self.network.normalize(box.lower), self.network.normalize(box.upper))
        return intervals(self.graph, normalised, self._further(box, labels, method))

    def _further(self, box: Box, labels: Tensor, method: str) -> list[Box] | None:
        if method == "ibp" or self.order is None:
            return None
        try:
            with computing_in(torch.float64), torch.no_grad():
                found = self.network.bounds(box, labels, method).relu_inputs
        except UserError:  # auto_LiRPA cannot bound a layer: intervals must do
            return None
        return [found[at] for at in self.order] if len(found) >= len(self.order) else None


def _order_of_relus(network: BoundedNetwork, graph: LayerGraph) -> tuple[int, ...] | None:
    """Return which of auto_LiRPA's ReLUs each ReLU of the graph is, or ``None`` if that cannot be told.

    Both are asked for the inputs of all ReLUs at some points: those that agree are the same.
    """
    x = torch.rand(4, *network.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        with computing_in(torch.float64), torch.no_grad():
            theirs = network.bounds(Box(x, x), torch.zeros(4, dtype=torch.long), "ibp").relu_inputs
    except UserError:
        return None
    values = graph.values(network.normalize(x))
    order = []
    for at in graph.relus:
        mine = values[graph.layers[at].inputs[0]]
        same = [
            number
            for number, box in enumerate(theirs)
            if box.lower.numel() == mine.numel() and torch.allclose(box.lower.flatten(), mine.flatten(), atol=1e-9)
        ]
        if not same:
            return None
        order.append(same[0])
    return tuple(order)


class _Image:
    """One image: its model, and what is known of its margins.

    Args:
        settings, network, exact: see :class:`Mip`.
        problem: of the one image, where counterexamples are to hold.
        asked: the same in float64, what is to be proven.
    """

    def __init__(self, settings: Mip, network: BoundedNetwork, exact: _Exact, problem: Problem, asked: Problem) -> None:
        self._settings, self._network, self._exact = settings, network, exact
        self._problem, self._box = problem, asked.box
        self.margins = asked.margins[0].clone()
        self._threshold = asked.threshold(settings.tolerance).item()
        self._proven = (self.margins > self._threshold).tolist()
        self.witness = problem.images[0]
        until = time.monotonic() + settings.timeout
        self._until = until if problem.deadline is None else min(until, problem.deadline)

    def decide(self) -> Status:
        box = Box(*(side.detach().double().cpu() for side in (self._box.lower, self._box.upper)))
        labels = self._problem.labels.cpu()
        boxes = self._exact.intervals(box, labels, self._settings.bounds)
        encoded = encode(self._exact.graph, self._exact.matrices, boxes)
        label, others = int(labels[0]), other_classes(labels, self._network.classes)[0].tolist()
        for at in self._problem.margins[0].argsort().tolist():  # the likeliest to fail first
            if self._proven[at]:
                continue
            if self._solve(encoded, label, others[at], at):
                return Status.FALSIFIED
            if not self._proven[at]:
                return Status.UNKNOWN  # out of time, or too close to call
        return Status.VERIFIED

    def _solve(self, encoded: Encoded, label: int, other: int, at: int) -> bool:
        """Raise the margin of one class; return whether a counterexample was found."""
        objective = encoded.output.rows([label]) + -encoded.output.rows([other])

        def tried(solution: Solution) -> bool:
            return self._record(encoded.least(solution.lower, label, other), encoded, solution, at)

        left = self._until - time.monotonic()
        if left <= 0:
            return False
        solution = encoded.model.minimize(objective, left, self._settings.gap)
        if tried(solution):
            return True
        if solution.finished or self._proven[at] or self._problem.is_late():
            return False
        return tried(encoded.model.minimize(objective, self._lp_seconds(), relaxed=True))

    def _lp_seconds(self) -> float:
        deadline = self._problem.deadline
        limit = self._settings.lp_timeout
        return limit if deadline is None else min(limit, deadline - time.monotonic())

    def _record(self, lower: float, encoded: Encoded, solution: Solution, at: int) -> bool:
        """Raise the margin of a class to what is sure, and return whether the solver's point is a counterexample."""
        self.margins[at] = max(self.margins[at].item(), lower - self._threshold)
        self._proven[at] |= lower > self._threshold
        return solution.point is not None and self._is_witness(encoded.input.at(solution.point))

    def _is_witness(self, normalised: ndarray) -> bool:
        """Evaluate the solver's input on the network as the caller has it, in the box exactly."""
        exact = self._exact.network
        normalised = torch.from_numpy(normalised).view(1, *exact.shape)
        x = (normalised * exact.std + exact.mean).to(self._problem.images)
        x = self._problem.box.clamp(x)
        found = is_counterexample(self._network, self._problem.box, self._problem.labels, x)
        if found.item():
            self.witness = x[0]
        return bool(found.item())
