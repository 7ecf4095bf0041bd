"""Branch-and-bound on ReLU splits: complete verification with beta-CROWN bounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.beta_crown import Bounded, Dual, Forms, lower_bound, optimise, relax
from expressive_losses.bounds.extraction import extract
from expressive_losses.bounds.layers import LayerGraph, without_max_pool
from expressive_losses.bounds.reduction import Reduced, Tightening, TooManyNeurons, reduce, stack
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of, specification
from expressive_losses.verify.bab_attack import Hunt
from expressive_losses.verify.base import (
    DEFAULT_TOLERANCE,
    Problem,
    Status,
    Verdict,
    Verifier,
    combined,
    undecided,
)
from expressive_losses.verify.branching import Score, children, choose
from expressive_losses.verify.leaf import solve_leaf
from expressive_losses.verify.precise import in_float64
from expressive_losses.verify.tree import Domains, Tree


@VERIFIERS.register("bab")
class BranchAndBound(Verifier):
    """Branch-and-bound on ReLU splits, beta-CROWN at the nodes: decides what incomplete bounds leave open.

    Attributes:
        timeout: seconds for each image; images that share batches share their time equally.
        max_nodes: sub-problems bounded for each image.
        batch: sub-problems in one bounding call, over all images of the problem.
        iterations, lr, decay: steps on alpha and beta at the nodes, their size, and the factor on it per step.
        root_iterations: the same at the root.
        hidden: bounds on hidden neurons, once at the root: "ibp", or "crown" refined by ``hidden_iterations`` steps of
            alpha-CROWN of size ``hidden_lr``.
        branching: the score of neurons, see :func:`expressive_losses.verify.branching.score`.
        candidates: neurons tried by strong branching; 1 trusts the score.
        attack_steps: MI-FGSM steps against each open property at the root, from ``attack_starts`` points; 0 for
            no attack.
        node_attack_steps: MI-FGSM steps from the worst minimisers of each batch; 0 only evaluates them.
        momentum: of MI-FGSM; 0 makes it PGD.
        max_neurons: images with more unstable neurons are left unknown (memory grows with the square).
        hopeless: give an image up when the progress so far, extrapolated to its time limit with a factor of
            two, does not reach 0.
        tolerance: see :meth:`expressive_losses.verify.base.Problem.threshold`.

    Source: paper "Expressive Losses", appendix D; Wang et al., "Beta-CROWN".
    """

    kind: ClassVar[str] = "complete"
    batch_sizes: ClassVar[tuple[int, int]] = (1, 32)
    timeout: float = Field(default=60.0, gt=0)
    max_nodes: int = Field(default=200_000, ge=1)
    batch: int = Field(default=256, ge=2)
    iterations: int = Field(default=5, ge=0)
    lr: float = Field(default=0.1, gt=0)
    decay: float = Field(default=0.98, gt=0, le=1)
    root_iterations: int = Field(default=50, ge=0)
    hidden: Literal["ibp", "crown"] = "crown"
    hidden_iterations: int = Field(default=5, ge=0)
    hidden_lr: float = Field(default=1.0, gt=0)
    branching: Score = "upb"
    candidates: int = Field(default=1, ge=1)
    attack_steps: int = Field(default=100, ge=0)
    attack_starts: int = Field(default=4, ge=1)
    node_attack_steps: int = Field(default=5, ge=0)
    momentum: float = Field(default=1.0, ge=0)
    max_neurons: int = Field(default=8000, ge=1)
    hopeless: bool = False
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0)

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        if problem.is_late():
            return undecided(problem)
        search = _Search(self, network, problem)
        search.run()
        return search.verdict()


@dataclass(frozen=True)
class _Networks:
    """The reduced networks, a row for each tree: what is proven counts in one precision, the search is in another.

    Attributes:
        exact: in float64.
        quick: the same in the precision of the problem.
    """

    exact: Reduced
    quick: Reduced

    def rows(self, images: Tensor) -> _Networks:
        """Return those of some of the trees."""
        quick = self.quick.rows(images)
        return _Networks(quick if self.exact is self.quick else self.exact.rows(images), quick)


class _Search:
    """The trees of all images of one problem, bounded in shared batches."""

    def __init__(self, settings: BranchAndBound, network: BoundedNetwork, problem: Problem) -> None:
        self._settings, self._problem = settings, problem
        self._exact, self._asked = in_float64(network, problem)  # what is to be proven
        self._trees: list[Tree] = []
        self._networks: _Networks | None = None
        self._active: tuple[list[Tree], _Networks] | None = None
        self._thresholds = self._asked.threshold(settings.tolerance).tolist()
        self._hunt = Hunt(
            network,
            problem,
            settings.attack_steps,
            settings.attack_starts,
            settings.node_attack_steps,
            settings.momentum,
        )

    # -- the whole ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Bound the roots, attack, then split until nothing is left or a limit is reached."""
        began = time.monotonic()
        self._grow()
        if not self._trees:
            return
        self._start()
        self._charge(self._trees, began)
        while not self._problem.is_late():
            trees = [tree for tree in self._trees if tree.running]
            if not trees:
                return
            began = time.monotonic()
            self._round(trees)
            self._charge(trees, began)

    def verdict(self) -> Verdict:
        """Return what the trees say; images without a tree are left as they were."""
        clean = margins_of(self._problem.logits, self._problem.labels)
        clean = torch.where(torch.isfinite(clean), clean, -torch.inf)
        margins = combined(self._problem, self._asked.margins)
        status = [Status.UNKNOWN] * len(self._problem)
        witness = self._problem.images.clone()
        for tree in self._trees:
            if tree.witness is not None:
                status[tree.row], witness[tree.row] = Status.FALSIFIED, tree.witness
            found = torch.minimum(tree.margins().to(margins), clean[tree.row])  # +inf where nothing is left open
            at = tree.wanted.to(margins.device)
            margins[tree.row, at] = torch.fmax(margins[tree.row], found)[at]
        for tree in self._trees:
            if tree.verified and (margins[tree.row] > tree.threshold).all():
                status[tree.row] = Status.VERIFIED
        return Verdict(tuple(status), margins, witness)

    # -- the root -------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Reduce the network over the box of each image."""
        network, problem = self._exact, self._asked
        graph = without_max_pool(extract(network.model, network.shape, network.mean))
        box = Box(network.normalize(problem.box.lower), network.normalize(problem.box.upper))
        matrices = specification(problem.labels, network.classes, box.lower.dtype)
        networks = []
        for row in range(len(problem)):
            if problem.is_late():
                break
            one = self._reduce(graph, box[row : row + 1], matrices[row])
            if one is None:
                continue
            networks.append(one)
            wanted = ~(problem.margins[row] > self._thresholds[row]).cpu()
            roots = torch.full(wanted.shape, -torch.inf, dtype=box.lower.dtype)
            self._trees.append(Tree(row, self._thresholds[row], roots, wanted))
        if networks:
            exact = stack(networks)
            self._networks = _Networks(exact, exact.to(self._problem.images.dtype))

    def _reduce(self, graph: LayerGraph, box: Box, matrix: Tensor) -> Reduced | None:
        how = self._settings
        tightening = Tightening(how.hidden, how.hidden_iterations, how.hidden_lr)
        try:
            return reduce(graph, box, matrix, tightening, how.max_neurons)
        except TooManyNeurons:
            return None

    def _start(self) -> None:
        """Bound every open property without splits, and attack those that stay open."""
        networks, how = self._networks, self._settings
        reduced = networks.quick
        wanted = torch.stack([tree.wanted for tree in self._trees]).to(self._device)
        # The open properties of each image first, and no more columns than the image with the most of them needs.
        most = max(1, int(wanted.sum(1).max()))
        properties = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        valid, forms = wanted.gather(1, properties), reduced.outputs.pick(properties)
        sign = torch.zeros(*properties.shape, reduced.neurons.count, dtype=torch.int8, device=self._device)
        threshold = self._threshold(self._trees)
        target = torch.where(valid, threshold, -torch.inf)
        dual = Dual.start(reduced.neurons, most)
        found = optimise(reduced.neurons, forms, sign, dual, how.root_iterations, how.lr, how.decay, target)
        found = self._confirmed(self._trees, networks, properties, sign, found)
        for tree, lower, which in zip(self._trees, found.lower.cpu(), properties.cpu(), strict=True):
            tree.roots[which] = lower
        self._hunt.at_roots(self._trees, reduced, found.point, forms, valid & ~(found.lower > threshold))
        self._sort(self._trees, networks, properties, forms, sign, found, valid)

    # -- one round ------------------------------------------------------------------------------------------------

    def _round(self, trees: list[Tree]) -> None:
        """Split the worst sub-problems of each image and bound their children."""
        share = max(1, self._settings.batch // (2 * len(trees)))
        popped = [tree.pop(share) for tree in trees]
        networks = self._rows(trees)
        reduced = networks.quick
        parents, valid = _padded(popped, self._device)
        branch = parents.branch.clamp_min(0)
        sign, dual = children(parents.sign, Dual(parents.alpha, parents.beta), branch)
        properties, valid = parents.property.repeat(1, 2), valid.repeat(1, 2)
        forms = reduced.outputs.pick(properties)
        how, target = self._settings, torch.where(valid, self._threshold(trees), -torch.inf)
        found = optimise(reduced.neurons, forms, sign, dual, how.iterations, how.lr, how.decay, target)
        found = self._confirmed(trees, networks, properties, sign, found)
        inherited = parents.lower.repeat(1, 2)  # a child's feasible set lies in its parent's
        found = replace(found, lower=torch.fmax(found.lower, inherited))
        for tree, part in zip(trees, popped, strict=True):
            tree.nodes += 2 * len(part)
        self._sort(trees, networks, properties, forms, sign, found, valid)

    def _confirmed(
        self, trees: Sequence[Tree], networks: _Networks, properties: Tensor, sign: Tensor, found: Bounded
    ) -> Bounded:
        """Return the bounds; those above the threshold computed once more in float64, by the same multipliers.

        What float32 finds may be rounding. In float64 its worst case is in the threshold, or taken off the bound.
        """
        exact, dtype = networks.exact, self._asked.margins.dtype
        found = replace(found, lower=found.lower.to(dtype))
        promising = found.lower > self._threshold(trees)
        if exact is networks.quick or not promising.any():
            return found
        forms = exact.outputs.pick(properties)
        relaxation, dual = relax(exact.neurons, sign), found.dual.to(dtype)
        proven, _ = lower_bound(exact.neurons, forms, relaxation, sign.to(dtype), dual)
        return replace(found, lower=torch.where(promising, proven.lower, found.lower))

    def _sort(
        self,
        trees: Sequence[Tree],
        networks: _Networks,
        properties: Tensor,
        forms: Forms,
        sign: Tensor,
        found: Bounded,
        valid: Tensor,
    ) -> None:
        """Close what is proven, look for counterexamples, choose where to split the rest, and store it."""
        how, threshold, reduced = self._settings, self._threshold(trees), networks.quick
        proven = found.lower > threshold
        open_ = valid & ~proven
        self._hunt.at_nodes(trees, reduced, forms, found.point, open_)
        branch = choose(how.branching, how.candidates, reduced.neurons, forms, sign, found, threshold)
        everything = (found.lower, properties, sign, found.dual.alpha, found.dual.beta, branch)
        for at, tree in enumerate(trees):
            closed = valid[at] & proven[at]
            tree.close(properties[at][closed], found.lower[at][closed])
            if tree.witness is not None:
                continue
            leaves = open_[at] & (branch[at] < 0)  # nothing left to split
            for leaf in leaves.nonzero().squeeze(1).tolist():
                lower = found.lower[at, leaf].item()
                self._finish_leaf(tree, networks.exact, at, properties[at, leaf], sign[at, leaf], lower)
            tree.push(Domains(*(tensor[at] for tensor in everything)).pick(open_[at] & ~leaves))

    def _finish_leaf(
        self, tree: Tree, reduced: Reduced, at: int, property_: Tensor, sign: Tensor, known: float
    ) -> None:
        """Decide a sub-problem without unsplit neurons by its linear program."""
        image = torch.tensor([at], device=self._device)
        form = reduced.outputs.rows(image).pick(property_.view(1, 1))
        solved = solve_leaf(reduced.neurons.rows(image), form, sign, self._seconds_left(tree))
        lower = max(solved.lower, known)
        if solved.point is not None and not lower > tree.threshold:
            self._hunt.accept(tree, solved.point)
        tree.stuck |= not lower > tree.threshold
        tree.close(property_.view(1), torch.tensor([lower], dtype=torch.float64))

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self._problem.images.device

    def _threshold(self, trees: Sequence[Tree]) -> Tensor:
        """Return what the bounds of each tree must exceed, (I, 1)."""
        return self._asked.margins.new_tensor([[tree.threshold] for tree in trees])

    def _rows(self, trees: list[Tree]) -> _Networks:
        """Return the reduced networks of the running trees; copied only when one has stopped."""
        if len(trees) == len(self._trees):
            return self._networks
        if self._active is None or [id(t) for t in self._active[0]] != [id(t) for t in trees]:
            rows = torch.tensor([self._trees.index(tree) for tree in trees], device=self._device)
            self._active = trees, self._networks.rows(rows)
        return self._active[1]

    def _charge(self, trees: Sequence[Tree], began: float) -> None:
        """Share the time of a round among the images, and stop those at their limits."""
        share = (time.monotonic() - began) / len(trees)
        for tree in trees:
            tree.seconds += share
            out = tree.seconds >= self._settings.timeout or tree.nodes >= self._settings.max_nodes
            if tree.running and (out or self._is_hopeless(tree)):
                tree.given_up = True

    def _seconds_left(self, tree: Tree) -> float:
        left = self._settings.timeout - tree.seconds
        if self._problem.deadline is not None:
            left = min(left, self._problem.deadline - time.monotonic())
        return max(left, 1e-3)

    def _is_hopeless(self, tree: Tree) -> bool:
        limit = self._settings.timeout
        if not self._settings.hopeless or tree.seconds < 0.1 * limit:
            return False
        rate = (tree.worst - tree.roots[tree.wanted].min().item()) / tree.seconds
        return tree.worst + 2 * rate * (limit - tree.seconds) < 0


def _padded(parts: Sequence[Domains], device: torch.device) -> tuple[Domains, Tensor]:
    """Return the sub-problems of several images as (I, N, ...) on ``device``, and where they are not padding."""
    count = max(len(part) for part in parts)
    valid = torch.stack([torch.arange(count) < len(part) for part in parts]).to(device)
    padded = []
    for tensors in zip(*(part.tensors() for part in parts), strict=True):
        rows = [torch.nn.functional.pad(t, [0, 0] * (t.ndim - 1) + [0, count - len(t)]) for t in tensors]
        padded.append(torch.stack(rows).to(device))
    return Domains(*padded), valid
