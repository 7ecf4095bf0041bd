"""The open sub-problems of one image, and what is known of its properties. Everything stays on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

MOST_PARTS = 64


@dataclass(frozen=True)
class Domains:
    """Sub-problems of one image; U neurons.

    Attributes:
        lower: bound, (N,).
        property: which form, f_y - f_j for the j-th other class; (N,) int64.
        sign: splits, +1 for z >= 0, -1 for z <= 0; (N, U) int8.
        alpha, beta: the multipliers that gave the bound, (N, U).
        branch: the neuron to split next, (N,) int64.
    """

    lower: Tensor
    property: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    branch: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the attributes in order."""
        return self.lower, self.property, self.sign, self.alpha, self.beta, self.branch

    def pick(self, index: Tensor) -> Domains:
        """Return some of them."""
        return Domains(*(tensor[index] for tensor in self.tensors()))

    def cpu(self) -> Domains:
        """Return them on the CPU."""
        return Domains(*(tensor.cpu() for tensor in self.tensors()))


@dataclass
class Tree:
    """Branch-and-bound of one image.

    Attributes:
        row: of the image in its problem.
        threshold: what a bound must exceed to prove its sub-problem.
        roots: per property, the bound without splits; (P,).
        wanted: properties that were open at the root, (P,) bool.
        nodes: sub-problems bounded so far.
        seconds: time spent, that of shared batches divided equally.
        stuck: a leaf could be neither proven nor refuted: the image cannot be verified any more.
        witness: a counterexample (*image), pixel units.
        given_up: stopped by a limit.
        closed: per property, the smallest bound of the leaves closed so far; (P,), +inf where there is none.
    """

    row: int
    threshold: float
    roots: Tensor
    wanted: Tensor
    nodes: int = 0
    seconds: float = 0.0
    stuck: bool = False
    witness: Tensor | None = None
    given_up: bool = False
    _parts: list[Domains] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.closed = torch.full_like(self.roots, torch.inf)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self.witness is None and not self.given_up and len(self) > 0

    @property
    def verified(self) -> bool:
        """Whether every leaf of every property is proven."""
        return self.witness is None and not self.stuck and not self.given_up and len(self) == 0

    @property
    def worst(self) -> float:
        """The smallest bound of an open sub-problem, +inf if there is none."""
        return min((part.lower.min().item() for part in self._parts), default=torch.inf)

    def push(self, domains: Domains) -> None:
        """Add open sub-problems."""
        if len(domains):
            self._parts.append(domains.cpu())

    def pop(self, count: int) -> Domains:
        """Remove and return the ``count`` sub-problems with the smallest bounds.

        Parts are merged only now and then: to copy every open sub-problem in every round would dominate the time.
        """
        if len(self._parts) > MOST_PARTS:
            self._parts = [_merged(self._parts)]
        lower = torch.cat([part.lower for part in self._parts])
        taken = torch.zeros(len(lower), dtype=torch.bool)
        taken[lower.topk(min(count, len(lower)), largest=False, sorted=False).indices] = True
        popped, kept = [], []
        for part, mine in zip(self._parts, taken.split([len(part) for part in self._parts]), strict=True):
            if mine.any():
                popped.append(part.pick(mine))
                part = part.pick(~mine)
            if len(part):
                kept.append(part)
        self._parts = kept
        return _merged(popped)

    def close(self, properties: Tensor, lower: Tensor) -> None:
        """Note proven leaves."""
        self.closed.scatter_reduce_(0, properties.cpu(), lower.cpu().to(self.closed), "amin")

    def margins(self) -> Tensor:
        """Return a lower bound for each property, (P,): the smallest of all its leaves, +inf if none can be reached.

        Where a counterexample ended the search the tree is incomplete: then the bound without splits.
        """
        if self.witness is not None:
            return self.roots
        found = self.closed.clone()
        for part in self._parts:
            found.scatter_reduce_(0, part.property, part.lower.to(found), "amin")
        return torch.fmax(found, self.roots)


def _merged(parts: list[Domains]) -> Domains:
    if len(parts) == 1:
        return parts[0]
    return Domains(*(torch.cat(tensors) for tensors in zip(*(part.tensors() for part in parts), strict=True)))
