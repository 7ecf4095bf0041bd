"""float32 finds, float64 proves: what float32 cannot be sure of is bounded again where rounding is negligible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import is_out_of_memory
from expressive_losses.types import Box
from expressive_losses.verify.base import Problem, Status, Verdict, logits_of, scale_of
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

Bound = Callable[[BoundedNetwork, Box, Tensor], Tensor]

#: The copies in float64, or None where there can be none, each with the state of the network that it is of.
_copies: WeakKeyDictionary[BoundedNetwork, tuple[tuple[str | int, ...], BoundedNetwork | None]] = WeakKeyDictionary()


def with_second_look(
    network: BoundedNetwork, problem: Problem, verdict: Verdict, tolerance: float, bound: Bound
) -> Verdict:
    """Return the verdict, with the images verified that only float32's rounding held back and float64 proves.

    What rounding can add up to in float32 at worst is more than most margins; in float64 it is negligible. So an image
    whose margins exceed the tolerance, but not that, is bounded again in float64, by the same rule.

    Args:
        network: of the dtype of ``problem``; anything but float32 is not looked at again.
        problem, verdict: what was asked, and what float32 says.
        tolerance: see :meth:`Problem.threshold`.
        bound: lower bounds on the margins, (B, K-1), of a network over a box.
    """
    rows = _held_back(problem, verdict, tolerance)
    if not rows or problem.margins.dtype != torch.float32 or problem.is_late():
        return verdict
    proven = _proven_in_float64(network, problem.select(rows), tolerance, bound)
    status = list(verdict.status)
    for row, one in zip(rows, proven, strict=True):
        status[row] = Status.VERIFIED if one else status[row]
    return replace(verdict, status=tuple(status))


def in_float64(network: BoundedNetwork, problem: Problem, tolerance: float) -> tuple[BoundedNetwork, Problem]:
    """Return network and problem in float64, for a verifier that proves there; both as they are if that cannot be.

    Of the margins known so far those stay that float32 is sure of; the others are -inf. What is float64 already stays
    as it is, and so does a network that only computes in float32: there little exceeds the threshold.
    """
    if problem.margins.dtype != torch.float32:
        return network, problem
    with computing_in(torch.float64):
        copied = _float64_copy(network)
        if copied is None:
            return network, problem
        sure = problem.margins > problem.threshold(tolerance).unsqueeze(1)
        known = torch.where(sure, problem.margins, -torch.inf)
        return copied, _in_float64(copied, replace(problem, margins=known))


def _held_back(problem: Problem, verdict: Verdict, tolerance: float) -> list[int]:
    above = (verdict.worst > tolerance * scale_of(problem.logits)).tolist()
    return [row for row, one in enumerate(verdict.status) if one is Status.UNKNOWN and above[row]]


@torch.no_grad()
def _proven_in_float64(network: BoundedNetwork, problem: Problem, tolerance: float, bound: Bound) -> Sequence[bool]:
    with computing_in(torch.float64):
        copied = _float64_copy(network)
        if copied is None:
            return [False] * len(problem)
        exact = _in_float64(copied, problem)
        return exact.proven(bound(copied, exact.box, exact.labels), tolerance).tolist()


def _in_float64(copied: BoundedNetwork, problem: Problem) -> Problem:
    """Return the problem in float64. Its box holds the exact one: that of float32 has rounded corners.

    A pixel k/255, the radius and their difference are each rounded: together by less than the machine epsilon.
    """
    more = torch.finfo(torch.float32).eps
    box = Box((problem.box.lower.double() - more).clamp(min=0), (problem.box.upper.double() + more).clamp(max=1))
    images = problem.images.double()
    return replace(
        problem,
        images=images,
        box=box,
        logits=logits_of(copied, images),
        margins=problem.margins.double(),
        rounding=copied.rounding(),
    )


def _float64_copy(network: BoundedNetwork) -> BoundedNetwork | None:
    """Return the network in float64, made once; None where it only computes in float32, as somebody's own may."""
    state, known = network.state(), _copies.get(network)
    if known is None or known[0] != state:
        try:
            copied = evaluation_copy(network, network.mean.device, torch.float64, network.fast_chain)
        except Exception as error:  # of all kinds: a module of the user's own runs
            if is_out_of_memory(error):
                raise
            copied = None
        _copies[network] = known = state, copied
    return known[1]
