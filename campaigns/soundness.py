"""Try to find a bound that is not one: random networks, random boxes, every method, points of every kind.

    python -m campaigns.soundness                        minutes, a million checks
    python -m campaigns.soundness --checks 100000000     hours
    python -m campaigns.soundness --mutations            break the package on purpose: each must be noticed

A check is one (network, box, point): the point's margins are compared with the lower bounds of all methods.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from campaigns.networks import Subject, random_boxes, random_subject
from expressive_losses.attacks.pgd import Pgd
from expressive_losses.bounds import use_statistics
from expressive_losses.bounds.network import BOUND_METHODS
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.run import environment
from expressive_losses.types import Box, margins_of
from expressive_losses.verify.base import Problem, Status, is_counterexample
from expressive_losses.verify.evaluation import computing_in

#: What rounding may add, relative to the size of logits and bounds (they are sums of many numbers).
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
#: How far a point may be from the exact minimum that HiGHS proves.
EXACTNESS = 1e-4
FIELDS = {
    "bab": {"timeout": 2.0},
    "input-bab": {"timeout": 2.0, "max_nodes": 2000},
    "mip": {"timeout": 5.0, "gap": 0.0, "tolerance": 0.0, "bounds": "ibp"},
    "alpha-crown": {"iterations": 8},
}
#: Verifiers that take long for one image: they see every third network.
COMPLETE = ("bab", "input-bab", "mip")


@dataclass
class Tally:
    """What one method did."""

    networks: int = 0
    boxes: int = 0
    comparisons: int = 0
    violations: int = 0
    refused: Counter = field(default_factory=Counter)


@dataclass
class Campaign:
    """The state of a run.

    Attributes:
        checks: (network, box, point) triples.
        tallies: by method.
        features: in how many networks each occurred.
        examples: the first violations, in words.
    """

    seed: int = 0
    checks: int = 0
    grid_checks: int = 0
    networks: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    features: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Of all methods."""
        return sum(tally.violations for tally in self.tallies.values())

    def tally(self, method: str) -> Tally:
        """Return the tally of a method."""
        return self.tallies.setdefault(method, Tally())

    def complain(self, method: str, what: str) -> None:
        """Count a violation."""
        self.tally(method).violations += 1
        if len(self.examples) < 20:
            self.examples.append(f"{method}: {what}")

    def run(self, checks: int, samples: int = 250, until_violation: bool = False) -> Campaign:
        """Take one random network after the other until ``checks`` are done; every fifth has two inputs and a grid.

        Args:
            samples: points of each box, besides corners, attacks and grids.
            until_violation: stop after the first network with one.
        """
        while self.checks < checks and not (until_violation and self.violations):
            number = self.networks
            self.examine(random_subject(self.seed + number, flat=number % 5 == 4), self.seed + number, samples)
            self.networks += 1
        return self

    def examine(self, subject: Subject, seed: int, samples: int) -> None:
        """Bound one network over some boxes by every method and look for points below the bounds."""
        self.features.update(set(subject.features))
        box, labels = random_boxes(subject, seed)
        with computing_in(subject.dtype):
            points = _points(subject, box, labels, seed, samples)
            values = torch.stack([margins_of(subject.logits(x), labels) for x in points])  # (P, B, K-1)
            lowest, scale = values.amin(0), _scale(subject, points)
            if len(subject.network.shape) == 1:
                lowest = torch.minimum(lowest, self._grid(subject, box, labels))
            self.checks += len(points) * len(box)
            for method in BOUND_METHODS:
                self._bound(subject, method, box, labels, lowest, scale, len(points))
            if subject.statistics is None:
                self._verify(subject, box, labels, lowest, scale, len(points), seed)

    def _bound(self, subject, method, box, labels, lowest, scale, points) -> None:
        tally = self.tally(method)
        try:
            with torch.no_grad():
                bound = subject.network.margins(box, labels, method, statistics=subject.statistics)
        except Exception as error:  # auto_LiRPA raises all kinds for what it cannot do; that is an answer too
            tally.refused[f"{type(error).__name__}: {str(error)[:80]}"] += 1
            return
        self._compare(subject, method, bound, lowest, scale, points)

    def _compare(self, subject, method, bound, lowest, scale, points, allowed: float = 0.0) -> None:
        """Count bounds that are above a value that was found."""
        tally = self.tally(method)
        tally.networks, tally.boxes = tally.networks + 1, tally.boxes + len(bound)
        tally.comparisons += points * bound.numel()
        size = torch.maximum(scale, torch.where(torch.isfinite(bound), bound.abs(), 0.0))
        excess = bound - lowest - (ROUNDING[subject.dtype] + allowed) * size
        for row, column in (excess > 0).nonzero().tolist():
            what = f"{float(bound[row, column]):.7g} over a box with a point of {float(lowest[row, column]):.7g}"
            self.complain(method, f"{what} ({', '.join(subject.features)})")

    def _verify(self, subject, box, labels, lowest, scale, points, seed) -> None:
        """Ask every verifier; what it proves must hold at the points, what it refutes must be refuted by its point."""
        statuses: dict[str, tuple[Status, ...]] = {}
        unknown, indices = torch.full_like(lowest, -torch.inf), tuple(range(len(box)))
        problem = Problem(box.center, labels, box, subject.logits(box.center), unknown, indices, seed)
        for name in VERIFIERS.names():
            if name in ("clean", "attack") or (name in COMPLETE and self.networks % 3):
                continue
            tally = self.tally(name)
            try:
                verdict = VERIFIERS[name](**FIELDS.get(name, {}))(subject.network, problem)
            except UserError as error:
                tally.refused[str(error)[:80]] += 1
                continue
            statuses[name] = verdict.status
            allowed = EXACTNESS if name == "mip" else 0.0
            self._compare(subject, name, verdict.margins, lowest, scale, points, allowed)
            self._look_at(subject, name, verdict, problem, lowest)
            if name == "mip":
                self._exact(subject, verdict, box, labels, scale)
        self._contradictions(statuses)

    def _look_at(self, subject, name, verdict, problem, lowest) -> None:
        for row, status in enumerate(verdict.status):
            if status is Status.VERIFIED and float(lowest[row].min()) <= 0:
                self.complain(name, f"verified, but a point has the margin {float(lowest[row].min()):.7g}")
            if status is Status.FALSIFIED:
                one = slice(row, row + 1)
                held = is_counterexample(subject.network, problem.box[one], problem.labels[one], verdict.witness[one])
                if not bool(held):
                    self.complain(name, "falsified by a point that is no counterexample")

    def _exact(self, subject, verdict, box, labels, scale) -> None:
        """Compare every bound with the exact minima of the images that MIP has solved for all classes."""
        solved = [row for row, status in enumerate(verdict.status) if status is Status.VERIFIED]
        if not solved:
            return
        for method in BOUND_METHODS:
            try:
                with torch.no_grad():
                    bound = subject.network.margins(box[solved], labels[solved], method)
            except Exception:  # counted by _bound
                continue
            exact = verdict.margins[solved]
            self._compare(subject, f"{method} / exact", bound, exact, scale[solved], 1, EXACTNESS)

    def _contradictions(self, statuses: dict[str, tuple[Status, ...]]) -> None:
        for one, mine in statuses.items():
            for other, theirs in statuses.items():
                pairs = zip(mine, theirs, strict=True)
                if any(a is Status.VERIFIED and b is Status.FALSIFIED for a, b in pairs):
                    self.complain(one, f"verified what {other} falsified")

    def _grid(self, subject: Subject, box: Box, labels: Tensor, ticks: int = 101) -> Tensor:
        """Return the smallest margins over a grid of each box of two inputs."""
        line = torch.linspace(0, 1, ticks, dtype=subject.dtype)
        grid = torch.cartesian_prod(line, line)
        lowest = []
        for row in range(len(box)):
            one = box[row : row + 1]
            x = one.clamp(one.lower + grid * (one.upper - one.lower))
            lowest.append(margins_of(subject.logits(x), labels[row].expand(len(x))).amin(0))
        self.checks += len(grid) * len(box)
        self.grid_checks += len(grid) * len(box)
        return torch.stack(lowest)


def _points(subject: Subject, box: Box, labels: Tensor, seed: int, samples: int) -> list[Tensor]:
    """Return points of every box: uniform ones, corners, and what a gradient attack finds; each (B, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    points = [box.lower, box.upper, box.center]
    for index in range(samples):
        x = box.sample(generator)
        points.append(torch.where(x > box.center, box.upper, box.lower) if index % 2 else x)
    for objective, step in (("margin", 0.1), ("margin", 0.5), ("ce", 0.25)):
        attack = Pgd(steps=15, step_size=step, objective=objective)
        points.append(attack(_differentiable(subject), box, labels, generator))
    return points


def _differentiable(subject: Subject):
    """Return the logits with gradient, as the attack wants them."""

    def logits(x: Tensor) -> Tensor:
        with use_statistics(subject.network, subject.statistics):
            return subject.network(x)

    return logits


def _scale(subject: Subject, points: list[Tensor]) -> Tensor:
    """Return 1 + the largest logit of each box, (B, 1)."""
    return 1 + torch.stack([subject.logits(x).abs().amax(1) for x in points[:20]]).amax(0).unsqueeze(1)


def table(campaign: Campaign) -> str:
    """Return the campaign as a table, one line a method."""
    lines = [f"{'method':<22}{'networks':>9}{'boxes':>8}{'comparisons':>14}{'refused':>9}{'violations':>12}"]
    for name, one in campaign.tallies.items():
        refused = sum(one.refused.values())
        lines.append(f"{name:<22}{one.networks:>9}{one.boxes:>8}{one.comparisons:>14,}{refused:>9}{one.violations:>12}")
    lines.append("")
    lines.append("networks with: " + ", ".join(f"{name} {count}" for name, count in campaign.features.most_common()))
    lines.append(
        f"{campaign.checks:,} checks (network, box, point), {campaign.grid_checks:,} of them on grids; "
        f"{campaign.networks} networks; {campaign.violations} violations"
    )
    return "\n".join([*lines, *campaign.examples])


def row(campaign: Campaign, seconds: float) -> dict:
    """Return the campaign as a row of results."""
    about = environment(torch.device("cpu"))
    keys = ("time", "git", "device", "torch", "auto_LiRPA", "python")
    return {
        "campaign": "soundness",
        "command": f"python -m campaigns.soundness --checks {campaign.checks} --seed {campaign.seed}",
        "seed": campaign.seed,
        "networks": campaign.networks,
        "checks": campaign.checks,
        "grid_checks": campaign.grid_checks,
        "comparisons": sum(tally.comparisons for tally in campaign.tallies.values()),
        "violations": campaign.violations,
        "methods": {
            name: {"boxes": one.boxes, "refused": sum(one.refused.values()), "violations": one.violations}
            for name, one in campaign.tallies.items()
        },
        "features": dict(campaign.features),
        "seconds": round(seconds, 1),
        **{key: about[key] for key in keys},
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign, or the mutations; return 1 when a bound was wrong or a mutation went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.soundness", description=__doc__)
    parser.add_argument("--checks", type=int, default=1_000_000, help="(network, box, point) triples; default 1e6")
    parser.add_argument("--seed", type=int, default=0, help="the first network's")
    parser.add_argument("--mutations", action="store_true", help="break the package on purpose instead")
    parser.add_argument("--out", type=Path, help="append a row to this file")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.mutations:
        from campaigns import mutations

        return mutations.main(options.out)
    campaign = Campaign(options.seed).run(options.checks)
    print(table(campaign))
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row(campaign, time.monotonic() - started)) + "\n")
    return int(campaign.violations > 0)


if __name__ == "__main__":
    sys.exit(main())
