"""The search for counterexamples inside branch-and-bound, from the minimisers of the relaxations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expressive_losses.attacks.mi_fgsm import MiFgsm
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.beta_crown import Forms, evaluate
from expressive_losses.bounds.reduction import Reduced
from expressive_losses.types import Box
from expressive_losses.verify.base import Problem, is_counterexample
from expressive_losses.verify.tree import Tree

WORST = 4  # sub-problems of an image whose minimisers are improved in each round


class Hunt:
    """Looks for points where a property fails, on the reduced network; the plain network confirms them.

    Args:
        network: the plain network.
        problem: the images.
        steps: of MI-FGSM against each open property at the root; 0 for no attack.
        starts: points that it starts from: the minimiser of the relaxation, and random ones.
        node_steps: of MI-FGSM from the worst minimisers of each round; 0 only evaluates them.
        momentum: of MI-FGSM; 0 makes it PGD.
    """

    def __init__(
        self, network: BoundedNetwork, problem: Problem, steps: int, starts: int, node_steps: int, momentum: float
    ) -> None:
        self._network, self._problem = network, problem
        self._steps, self._starts, self._node_steps, self._momentum = steps, starts, node_steps, momentum

    def at_roots(self, trees: Sequence[Tree], reduced: Reduced, points: Tensor, forms: Forms, open_: Tensor) -> None:
        """Attack each open property from its minimiser ``points`` (I, N, D) and from random points, all at once."""
        if not self._steps or not open_.any():
            return
        rows = [tree.row for tree in trees]
        noise = [  # the same for all properties, so that it does not depend on how many there are
            torch.rand(self._starts - 1, points.shape[2], generator=generator, dtype=points.dtype)
            for generator in self._problem.select(rows).generators("bab")
        ]
        random = (2 * torch.stack(noise) - 1).to(points)
        count = points.shape[1]
        start = torch.cat([points, random.repeat_interleave(count, 1)], 1)
        which = torch.arange(count, device=points.device).repeat(self._starts).expand(len(rows), -1)
        forms = forms.pick(which)
        found = self._ascend(reduced, start, forms, self._steps)
        self._try(trees, reduced, found, forms, open_.gather(1, which))

    def at_nodes(self, trees: Sequence[Tree], reduced: Reduced, forms: Forms, points: Tensor, open_: Tensor) -> None:
        """Evaluate the minimisers ``points`` (I, N, D), improve the few worst, and check those that seem to refute."""
        with torch.no_grad():
            values = evaluate(reduced.neurons, forms, points)
        self._check(trees, points, values, open_)
        if not self._node_steps:
            return
        few = min(WORST, values.shape[1])
        worst = torch.where(open_, values, torch.inf).topk(few, dim=1, largest=False).indices
        start = points.gather(1, worst.unsqueeze(2).expand(-1, -1, points.shape[2]))
        some = forms.pick(worst)
        improved = self._ascend(reduced, start, some, self._node_steps)
        self._try(trees, reduced, improved, some, open_.gather(1, worst))

    def accept(self, tree: Tree, u: Tensor) -> None:
        """Keep the point ``u`` of [-1, 1]^D, in pixel units, as the witness if it refutes the label on the network."""
        one = slice(tree.row, tree.row + 1)
        box = self._problem.box[one]
        x = box.clamp(box.center + box.half_width * u.view_as(box.center).to(box.center))
        if is_counterexample(self._network, box, self._problem.labels[one], x).item():
            tree.witness = x[0]

    def _ascend(self, reduced: Reduced, start: Tensor, forms: Forms, steps: int) -> Tensor:
        """Return points of lower value, (I, N, D): MI-FGSM on the reduced network, which is the network on the box."""
        shape = start.shape
        flat = start.flatten(0, 1)
        box = Box(torch.full_like(flat, -1.0), torch.full_like(flat, 1.0))

        def logits(u: Tensor) -> Tensor:
            value = evaluate(reduced.neurons, forms, u.view(shape)).flatten()
            return torch.stack([torch.zeros_like(value), -value], 1)

        step = 2.5 / max(steps, 5)  # half-widths: the whole box can be crossed
        fields = {"steps": steps, "step_size": step, "momentum": self._momentum}
        attack = MiFgsm(**fields, objective="margin", random_start=False)
        labels = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        return attack(logits, box, labels, start=flat).view(shape)

    def _try(self, trees: Sequence[Tree], reduced: Reduced, points: Tensor, forms: Forms, open_: Tensor) -> None:
        with torch.no_grad():
            self._check(trees, points, evaluate(reduced.neurons, forms, points), open_)

    def _check(self, trees: Sequence[Tree], points: Tensor, values: Tensor, open_: Tensor) -> None:
        """Re-evaluate on the plain network the points that the reduced one says are counterexamples."""
        promising = (values <= 0) & open_
        if not promising.any():
            return
        best = torch.where(promising, values, torch.inf).argmin(1)
        for at in promising.any(1).nonzero().squeeze(1).tolist():
            self.accept(trees[at], points[at, best[at]])
