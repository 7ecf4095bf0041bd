"""Try to find a bound that is not one: random networks, random boxes, every method, points of every kind.

    python -m campaigns.soundness                        minutes, a million checks
    python -m campaigns.soundness --checks 100000000     hours
    python -m campaigns.soundness --mutations            break the package on purpose: each must be noticed

A check is one (network, box, point): the point's margins are compared with the lower bounds of all methods.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from campaigns.networks import Subject, random_subject
from campaigns.nodes import node_bounds
from campaigns.questions import Question, close_calls, random_question
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.network import BOUND_METHODS
from expressive_losses.errors import NoBounds, UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.run import environment
from expressive_losses.types import Box, other_classes
from expressive_losses.verify.base import Problem, Status, Verdict, is_counterexample
from expressive_losses.verify.evaluation import computing_in
from expressive_losses.verify.mip import _Exact
from expressive_losses.verify.mip_model import encode

#: What rounding may add, relative to the size of logits and bounds (they are sums of many numbers).
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
#: How far the minimum that HiGHS finds may be from the exact one.
EXACTNESS = 1e-4
FIELDS = {
    "bab": {"timeout": 2.0},
    "input-bab": {"timeout": 2.0, "max_nodes": 2000},
    "mip": {"timeout": 2.0, "gap": 0.0, "tolerance": 0.0, "first": (), "bounds": "ibp"},
    "alpha-crown": {"iterations": 8},
}
#: Attacks and these, which take long for one image, see every box of each third network; these the close calls of all.
COMPLETE = ("bab", "input-bab", "mip")
#: Close calls are put to them without attacks, which would find the counterexample before anything can be wrong.
WITHOUT_ATTACK = {"bab": {"attack_steps": 0, "node_attack_steps": 0, "max_nodes": 400}}
#: Numbers of networks, modulo 10, of other kinds than images.
KINDS = {1: "wired vectors", 2: "rows", 4: "vectors", 6: "wired images", 7: "rows", 9: "vectors"}


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
        grid_checks: those of them on grids.
        close_calls: boxes that only just hold a counterexample, see :func:`campaigns.questions.close_calls`.
        tallies: by method.
        features: in how many networks each occurred.
        examples: the first violations, in words.
        kind: of all networks, see :func:`campaigns.networks.random_subject`; "" for all kinds in turn.
    """

    seed: int = 0
    kind: str = ""
    checks: int = 0
    grid_checks: int = 0
    close_calls: int = 0
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

    def run(
        self, checks: float, networks: float = math.inf, samples: int = 250, until_violation: bool = False
    ) -> Campaign:
        """Take one random network after the other until ``checks`` are done, or so many networks.

        Args:
            samples: points of each box, besides corners, attacks and grids.
            until_violation: stop after the first network with one.
        """
        while self.checks < checks and self.networks < networks and not (until_violation and self.violations):
            number = self.networks
            subject = random_subject(self.seed + number, self.kind or KINDS.get(number % 10, "images"))
            self.examine(subject, self.seed + number, samples, thorough=number % 3 == 0)
            self.networks += 1
        return self

    def examine(self, subject: Subject, seed: int, samples: int, thorough: bool = False) -> None:
        """Ask every method about one network over some boxes, and compare with points of them.

        Args:
            thorough: whether attacks and complete verifiers see all boxes.
        """
        self.features.update(set(subject.features))
        with computing_in(subject.dtype):
            question = random_question(subject, seed, samples)
            self.checks += question.points * len(question) + question.grid
            self.grid_checks += question.grid
            for method in BOUND_METHODS:
                self._bound(subject, method, question)
            if subject.statistics is not None:
                return  # verifiers are about running statistics
            self._nodes(subject, question, seed)
            names = VERIFIERS.names() if thorough else [n for n in VERIFIERS.names() if VERIFIERS[n].kind == "bound"]
            self._verify(subject, question, [n for n in names if n not in ("clean", "attack")], FIELDS, seed)
            if (close := close_calls(subject, seed)) is not None:
                self.checks += close.points * len(close)
                self.close_calls += len(close)
                self._verify(subject, close, COMPLETE, {**FIELDS, **WITHOUT_ATTACK}, seed)

    def _bound(self, subject: Subject, method: str, question: Question) -> None:
        try:
            with torch.no_grad():
                bound = subject.network.margins(question.box, question.labels, method, statistics=subject.statistics)
        except NoBounds as error:  # that the package itself finds, as some of the first bounds
            self.complain(method, f"{error} ({', '.join(subject.features)})")
            return
        except UserError as error:  # a refusal is an answer too
            self.tally(method).refused[str(error)[:100]] += 1
            return
        self._compare(subject, method, bound, question)

    def _nodes(self, subject: Subject, question: Question, seed: int) -> None:
        """Bound random sub-problems of branch-and-bound, over the larger boxes."""
        for row in range(2, len(question)):
            one = slice(row, row + 1)
            try:
                found = node_bounds(subject, question.box[one], question.labels[one], seed)
            except UserError as error:
                self.tally("bab, nodes").refused[str(error)[:100]] += 1
                return
            if found is not None:
                self._compare(subject, "bab, nodes", *found)

    def _compare(self, subject: Subject, method: str, bound: Tensor, question: Question, allowed: float = 0.0) -> None:
        """Count bounds that are above a value that was found."""
        tally = self.tally(method)
        tally.networks, tally.boxes = tally.networks + 1, tally.boxes + len(bound)
        tally.comparisons += question.points * bound.numel()
        size = torch.maximum(question.scale, torch.where(torch.isfinite(bound), bound.abs(), 0.0))
        excess = bound - question.lowest - (ROUNDING[subject.dtype] + allowed) * size
        for row, column in (excess > 0).nonzero().tolist():
            found = float(question.lowest[row, column])
            what = f"{float(bound[row, column]):.7g} over a box with a point of {found:.7g}"
            self.complain(method, f"{what} ({', '.join(subject.features)})")

    def _verify(self, subject: Subject, question: Question, names: Iterable[str], fields: dict, seed: int) -> None:
        """Ask verifiers; what they prove must hold at the points, what they refute must be refuted by their point."""
        statuses: dict[str, tuple[Status, ...]] = {}
        box, labels = question.box, question.labels
        unknown, indices = torch.full_like(question.lowest, -torch.inf), tuple(range(len(box)))
        problem = Problem(box.center, labels, box, subject.logits(box.center), unknown, indices, seed)
        for name in names:
            try:
                verdict = VERIFIERS[name](**fields.get(name, {}))(subject.network, problem)
            except UserError as error:
                self.tally(name).refused[str(error)[:100]] += 1
                continue
            statuses[name] = verdict.status
            self._compare(subject, name, verdict.margins, question)
            self._look_at(subject, name, verdict, problem, question.lowest)
            if name == "mip":
                self._exact(subject, verdict, question)
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

    def _exact(self, subject: Subject, verdict: Verdict, question: Question) -> None:
        """Compare every bound with the exact minima of the images that MIP has solved for all classes."""
        solved = [row for row, status in enumerate(verdict.status) if status is Status.VERIFIED]
        if not solved:
            return
        box, labels, scale = question.box[solved], question.labels[solved], question.scale[solved]
        minima = verdict.margins[solved] + solver_slack(subject.network, box, labels)
        exact = Question(box, labels, minima, scale, points=1)
        for method in BOUND_METHODS:
            try:
                with torch.no_grad():
                    bound = subject.network.margins(box, labels, method)
            except UserError:  # counted by _bound
                continue
            self._compare(subject, f"{method} / exact", bound, exact, EXACTNESS)

    def _contradictions(self, statuses: dict[str, tuple[Status, ...]]) -> None:
        for one, mine in statuses.items():
            for other, theirs in statuses.items():
                pairs = zip(mine, theirs, strict=True)
                if any(a is Status.VERIFIED and b is Status.FALSIFIED for a, b in pairs):
                    self.complain(one, f"verified what {other} falsified")


def solver_slack(network: BoundedNetwork, box: Box, labels: Tensor) -> Tensor:
    """Return what `mip` takes off HiGHS's minima for its tolerances, (B, K-1)."""
    exact, found = _Exact.of(network), []
    for row, label in enumerate(labels.tolist()):
        one = box[row : row + 1]
        boxes = exact.intervals(Box(one.lower.double(), one.upper.double()), labels[row : row + 1], "ibp")
        encoded = encode(exact.graph, exact.matrices, boxes)
        others = other_classes(labels[row : row + 1], network.classes)[0].tolist()
        found.append([-encoded.least(0.0, label, other) for other in others])
    return torch.tensor(found).to(box.lower)


def table(campaign: Campaign) -> str:
    """Return the campaign as a table, one line a method."""
    lines = [f"{'method':<22}{'networks':>9}{'boxes':>8}{'comparisons':>14}{'refused':>9}{'violations':>12}"]
    for name, one in campaign.tallies.items():
        refused = sum(one.refused.values())
        lines.append(f"{name:<22}{one.networks:>9}{one.boxes:>8}{one.comparisons:>14,}{refused:>9}{one.violations:>12}")
    for name, one in campaign.tallies.items():
        lines += [f"    {name} refused {count} times: {reason}" for reason, count in one.refused.items()]
    lines.append("")
    lines.append("networks with: " + ", ".join(f"{name} {count}" for name, count in campaign.features.most_common()))
    lines.append(
        f"{campaign.checks:,} checks (network, box, point), {campaign.grid_checks:,} of them on grids; "
        f"{campaign.close_calls} close calls; "
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
        "close_calls": campaign.close_calls,
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
    parser.add_argument("--only", default=":", metavar="BEGIN:END", help="a part of the list of mutations")
    parser.add_argument("--jobs", type=int, default=1, help="mutations tried at once")
    parser.add_argument("--out", type=Path, help="append a row to this file")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.mutations:
        from campaigns import mutations

        return mutations.main(options.out, options.jobs, options.only)
    campaign = Campaign(options.seed).run(options.checks)
    print(table(campaign))
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row(campaign, time.monotonic() - started)) + "\n")
    return int(campaign.violations > 0)


if __name__ == "__main__":
    sys.exit(main())
