"""float32 finds, float64 proves: what float32 cannot be sure of is bounded again where rounding is negligible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork, BoundMethod
from expressive_losses.errors import UnsupportedNetwork, is_out_of_memory
from expressive_losses.types import Box
from expressive_losses.verify.base import Problem, Status, Verdict, logits_of, scale_of
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

Bound = Callable[[BoundedNetwork, Box, Tensor], Tensor]

#: Of next to no cost: one excludes classes that another leaves.
CHEAP: tuple[BoundMethod, ...] = ("ibp", "crown_ibp")

#: The copies in float64, or why there can be none, each with the state of the network that it is of.
_copies: WeakKeyDictionary[BoundedNetwork, tuple[tuple[str | int, ...], BoundedNetwork | str]] = WeakKeyDictionary()


def with_second_look(
    network: BoundedNetwork, problem: Problem, verdict: Verdict, tolerance: float, bound: Bound
) -> Verdict:
    """Return the verdict, with the images verified that only float32's rounding held back and float64 proves.

    What rounding can add up to in float32 at worst is more than most margins; in float64 it is negligible. So an image
    whose margins exceed the tolerance, but not that, is bounded again in float64, by the same rule. Classes that the
    bound itself leaves may be those of an earlier stage: interval bounds and CROWN-IBP are asked about them.

    Args:
        network: of the dtype of ``problem``; anything but float32 is not looked at again.
        problem, verdict: what was asked, and what float32 says.
        tolerance: see :meth:`Problem.threshold`.
        bound: lower bounds on the margins, (B, K-1), of a network over a box.

    Raises:
        UnsupportedNetwork: it cannot be computed, or not bounded, in float64.
    """
    rows = _held_back(problem, verdict, tolerance)
    if not rows or problem.margins.dtype != torch.float32 or problem.is_late():
        return verdict
    proven = _proven_in_float64(network, problem.select(rows), tolerance, bound)
    status = list(verdict.status)
    for row, one in zip(rows, proven, strict=True):
        status[row] = Status.VERIFIED if one else status[row]
    return replace(verdict, status=tuple(status))


@torch.no_grad()
def in_float64(
    network: BoundedNetwork, problem: Problem, methods: Sequence[BoundMethod] = CHEAP
) -> tuple[BoundedNetwork, Problem]:
    """Return network and problem in float64, for a verifier that proves there; as they are if they are in float64.

    Its margins are what ``methods`` give in float64, -inf where they cannot: those known in float32 are no proof.

    Raises:
        UnsupportedNetwork: the network cannot be computed in float64.
    """
    if problem.margins.dtype != torch.float32:
        return network, problem
    with computing_in(torch.float64):
        copied = _float64_copy(network)
        exact = _in_float64(copied, problem)
        return copied, replace(exact, margins=_best_of(methods, copied, exact))


def _held_back(problem: Problem, verdict: Verdict, tolerance: float) -> list[int]:
    above = (verdict.worst > tolerance * scale_of(problem.logits)).tolist()
    return [row for row, one in enumerate(verdict.status) if one is Status.UNKNOWN and above[row]]


@torch.no_grad()
def _proven_in_float64(network: BoundedNetwork, problem: Problem, tolerance: float, bound: Bound) -> Sequence[bool]:
    with computing_in(torch.float64):
        copied = _float64_copy(network)
        exact = _in_float64(copied, problem)
        margins = bound(copied, exact.box, exact.labels)
        proven = exact.proven(margins, tolerance)
        left = (~proven).nonzero().squeeze(1).tolist()
        if left:
            others = exact.select(left)
            best = torch.fmax(margins[left], _best_of(CHEAP, copied, others))
            proven[left] = others.proven(best, tolerance)
        return proven.tolist()


def _best_of(methods: Sequence[BoundMethod], network: BoundedNetwork, problem: Problem) -> Tensor:
    """Return the best of several bounds on each margin, (B, K-1); -inf where none is finite."""
    best = torch.full_like(problem.margins, -torch.inf)
    for method in methods:
        try:
            found = network.margins(problem.box, problem.labels, method)
        except UnsupportedNetwork:
            continue
        best = torch.maximum(best, torch.where(torch.isfinite(found), found, -torch.inf))
    return best


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


def _float64_copy(network: BoundedNetwork) -> BoundedNetwork:
    """Return the network in float64, made once."""
    state, known = network.state(), _copies.get(network)
    if known is None or known[0] != state:
        _copies[network] = known = state, _made_copy(network)
    if isinstance(known[1], str):
        raise UnsupportedNetwork(f"the network cannot be computed in float64, where proofs are made: {known[1]}")
    return known[1]


def _made_copy(network: BoundedNetwork) -> BoundedNetwork | str:
    """Return the copy, or why there is none: a module of the user's own may compute in float32 only."""
    try:
        return evaluation_copy(network, network.mean.device, torch.float64, network.fast_chain)
    except Exception as error:  # of all kinds: the user's module runs
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
