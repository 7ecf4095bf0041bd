"""Check a ledger from outside: what it says is computed again, in float64, by other code than wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify.base import Problem, Status, Verifier, scale_of
from expressive_losses.verify.cascade import Cascade, Outcome
from expressive_losses.verify.evaluation import computing_in, evaluation_copy, pixels
from expressive_losses.verify.head import hash_of_tensors, hash_of_weights
from expressive_losses.verify.ledger import FILE_NAME, Row, load_witness, read_ledger, refuse_other, witness_name
from expressive_losses.verify.shard import asked_indices

SHOWN = 5  # contradictions named in the message
#: Of the largest logit: by how much the logits of one forward pass in float32 may differ from those in float64.
LOGITS_TOLERANCE = 1e-5


class Contradiction(UserError):
    """A ledger says something that is not so.

    Attributes:
        findings: one line each.
    """

    def __init__(self, path: Path, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        more = f"; and {len(findings) - SHOWN} more" if len(findings) > SHOWN else ""
        super().__init__(f"{path} is contradicted {len(findings)} times: {'; '.join(findings[:SHOWN])}{more}")


@dataclass(frozen=True)
class Checked:
    """What was looked at, when nothing was contradicted.

    Attributes:
        rows: in the ledger.
        missing: images that were asked for and have no row.
        counterexamples: evaluated again.
        borderline: images whose counterexample has a margin above 0, but below the tolerance, in float64.
        bounds: verified rows whose bound was derived again.
        unconfirmed: verified rows that a complete verifier could not decide again, in time.
        rounding: the largest difference between a recorded margin and the one derived again, logit units.
        attacked: verified rows that were attacked again, in vain.
    """

    rows: int
    missing: int
    counterexamples: int
    borderline: tuple[int, ...]
    bounds: int
    unconfirmed: tuple[int, ...]
    rounding: float | None
    attacked: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rows} rows agree with the network", f"{self.counterexamples} counterexamples hold"]
        if self.borderline:
            parts.append(f"{len(self.borderline)} of them up to rounding only")
        if self.rounding is not None:
            parts.append(f"{self.bounds} bounds hold in float64 (margins differ by {self.rounding:.1e} at most)")
        if self.attacked:
            parts.append(f"{self.attacked} verified images were attacked again, in vain")
        if self.unconfirmed:
            parts.append(f"{len(self.unconfirmed)} could not be decided again: {_some(self.unconfirmed)}")
        if self.missing:
            parts.append(f"{self.missing} images have no row yet")
        return ", ".join(parts)


def check(
    folder: Path | str,
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: bool = False,
    attacks: Sequence[Verifier] = (),
    seed: int = 1,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    tolerance: float = LOGITS_TOLERANCE,
) -> Checked:
    """Evaluate every row of a ledger again, on a float64 copy of the plain network.

    Always: labels; clean predictions; that each counterexample lies in the box and is not classified as the label; that
    verified rows have a positive margin, a stage that can prove, and no counterexample.

    A float32 run is met with two tolerances. The box: |x' - x| <= eps is evaluated in float64, with x = k/255
    and eps as they are meant, and may fail by the machine epsilon of the run's dtype (2^-23 for float32), because the
    run's box is rounded in its corners; 0 <= x' <= 1 must hold exactly. The logits: a margin counts as not positive up
    to ``tolerance`` times the largest logit (or 1).

    Args:
        folder: of the ledger.
        network: the one that was verified, as its weights' hash is compared.
        images, labels: the data set, (N, C, H, W) and (N,); at least the images that were asked for.
        bounds: also derive the bound of each verified row again, in float64, with the stages of the ledger.
        attacks: also run these on the verified rows, e.g. ``build_stages("pgd")[1:]``; they should find nothing.
        seed: of those attacks, another than the run's.
        device: to compute on.
        batch_size: images at once; ``None`` chooses.
        tolerance: relative to the largest logit.

    Raises:
        Contradiction: when a row does not hold; lists which.
        UserError: another network or other data, or a ledger that cannot be read.
    """
    folder = Path(folder)
    head, rows = read_ledger(folder)
    images, labels = images[: head["first"]], labels[: head["first"]].long()
    refuse_other_question(folder / FILE_NAME, head, network, images, labels)
    evaluated = evaluation_copy(network, torch.device(device), torch.float64, fast_chain=False)
    again = _Again(folder, head, rows, evaluated, images, labels, tolerance, batch_size)
    with computing_in(torch.float64):
        findings = again.plain_rows()
        counterexamples, borderline = again.counterexamples(findings)
        attacked = again.attack(attacks, seed, findings)
        derived = again.bounds(findings) if bounds else _Derived()
    if findings:
        raise Contradiction(folder / FILE_NAME, findings)
    missing = len(set(asked_indices(head)) - set(rows))
    return Checked(
        len(rows), missing, counterexamples, borderline, derived.count, derived.unconfirmed, derived.rounding, attacked
    )


def disjoint(folders: Sequence[Path | str]) -> int:
    """Refuse ledgers that contradict one another: verified at a radius, and falsified at that radius or a smaller one.

    Ledgers of other networks or data are not compared. Returns the number of pairs that were.

    Raises:
        Contradiction: naming the image and both folders.
    """
    ledgers = [(Path(folder), *read_ledger(Path(folder))) for folder in folders]
    compared = 0
    for proof, proven_head, proven in ledgers:
        for refutation, refuted_head, refuted in ledgers:
            same = all(proven_head[key] == refuted_head[key] for key in ("weights_sha256", "data_sha256"))
            if proof == refutation or not same or refuted_head["eps_value"] > proven_head["eps_value"]:
                continue
            both = _of(proven, Status.VERIFIED).keys() & _of(refuted, Status.FALSIFIED).keys()
            findings = [f"image {index} is verified there but falsified in {refutation}" for index in sorted(both)]
            if findings:
                raise Contradiction(proof / FILE_NAME, findings)
            compared += 1
    return compared


@dataclass(frozen=True)
class _Derived:
    count: int = 0
    unconfirmed: tuple[int, ...] = ()
    rounding: float | None = None


class _Again:
    """A ledger and what is needed to compute its rows again."""

    def __init__(
        self,
        folder: Path,
        head: Mapping[str, Any],
        rows: Mapping[int, Row],
        network: BoundedNetwork,
        images: Tensor,
        labels: Tensor,
        tolerance: float,
        batch_size: int | None,
    ) -> None:
        self._folder, self._head, self._rows = folder, head, rows
        self._network, self._images, self._labels = network, images, labels
        self._tolerance, self._batch_size = tolerance, batch_size
        self._kinds = {stage["name"]: VERIFIERS[stage["name"]].kind for stage in head["stages"]}

    def plain_rows(self) -> list[str]:
        """Return what is wrong with labels, clean predictions, and the form of the rows."""
        asked = asked_indices(self._head)
        findings = [f"image {index} was not asked for" for index in self._rows if index not in asked]
        known = [row for index, row in self._rows.items() if index in asked]
        for batch in _batches(known, self._batch_size):
            margins, slack = self._margins(self._pixels(batch), batch)
            for row, worst, allowed in zip(batch, margins.tolist(), slack.tolist(), strict=True):
                findings += [f"image {row.index} {text}" for text in self._wrong(row, worst, allowed)]
        return findings

    def _wrong(self, row: Row, worst: float, allowed: float) -> Iterable[str]:
        label = int(self._labels[row.index])
        if row.label != label:
            yield f"has label {label}, not {row.label}"
        if (row.status is Status.MISCLASSIFIED and worst > allowed) or (
            row.status is not Status.MISCLASSIFIED and worst <= -allowed
        ):
            yield f"is {row.status} but its clean margin is {worst:.3g}"
        if row.status is Status.VERIFIED:
            yield from self._wrong_proof(row)
        if row.status is Status.FALSIFIED and self._kinds.get(row.decided_by) not in ("attack", "complete"):
            yield f"is falsified by '{row.decided_by}', which is no attack of this run"

    def _wrong_proof(self, row: Row) -> Iterable[str]:
        if self._kinds.get(row.decided_by) not in ("bound", "complete"):
            yield f"is verified by '{row.decided_by}', which is no bound of this run"
        if row.margin is None or not row.margin > 0:
            yield f"is verified with margin {row.margin}"
        if row.witness is not None or (self._folder / witness_name(row.index)).exists():
            yield "is verified but has a counterexample"

    def counterexamples(self, findings: list[str]) -> tuple[int, tuple[int, ...]]:
        """Evaluate the counterexamples; return how many hold, and which of those only up to rounding."""
        held, borderline = 0, []
        falsified = [row for row in _of(self._rows, Status.FALSIFIED).values() if row.index < len(self._images)]
        for batch in _batches(falsified, self._batch_size):
            points = self._points(batch, findings)
            batch = [row for row in batch if row.index in points]
            if not batch:
                continue
            x = torch.stack([points[row.index] for row in batch])
            outside = self._distance_outside(x, batch)
            margins, slack = self._margins(x, batch)
            for row, away, worst, allowed in zip(batch, outside, margins.tolist(), slack.tolist(), strict=True):
                if away > torch.finfo(getattr(torch, self._head["dtype"])).eps:
                    findings.append(f"the counterexample of image {row.index} is {away:.3g} outside its box")
                elif not worst <= allowed:  # a NaN refutes nothing
                    findings.append(f"the counterexample of image {row.index} has margin {worst:.3g} > 0")
                else:
                    held += 1
                    borderline += [row.index] if worst > 0 else []
        return held, tuple(borderline)

    def _points(self, batch: Sequence[Row], findings: list[str]) -> dict[int, Tensor]:
        points = {}
        for row in batch:
            try:
                point = torch.from_numpy(load_witness(self._folder, row)).to(self._network.mean)
            except UserError as error:
                findings.append(str(error))
                continue
            if tuple(point.shape) == self._network.shape:
                points[row.index] = point
            else:
                findings.append(f"the counterexample of image {row.index} has shape {tuple(point.shape)}")
        return points

    def _distance_outside(self, x: Tensor, batch: Sequence[Row]) -> list[float]:
        """Return how far each point is out of its ball; infinite where it is out of [0, 1] or not a number."""
        away = ((x - self._pixels(batch)).abs() - self._head["eps_value"]).flatten(1).amax(1)
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return torch.where(inside, away, torch.inf).tolist()

    def attack(self, stages: Sequence[Verifier], seed: int, findings: list[str]) -> int:
        """Attack the verified rows; return how many there are."""
        if not stages:
            return 0
        verified = list(_of(self._rows, Status.VERIFIED).values())
        for outcome in self._run(stages, verified, seed):
            if outcome.status is Status.FALSIFIED:
                findings.append(f"image {outcome.index} is verified but {outcome.decided_by} finds a counterexample")
        return len(verified)

    def bounds(self, findings: list[str]) -> _Derived:
        """Derive the bounds of the verified rows again, with the stages of the ledger up to the one that decided."""
        verified = _of(self._rows, Status.VERIFIED).values()
        specs = [spec for spec in self._head["stages"] if self._kinds[spec["name"]] in ("bound", "complete")]
        count, unconfirmed, rounding = 0, [], 0.0
        for number, spec in enumerate(specs, start=1):
            mine = [row for row in verified if row.decided_by == spec["name"]]
            stages = [VERIFIERS.build(one) for one in specs[:number]]
            for outcome in self._run(stages, mine, self._head["seed"]):
                if outcome.status is Status.VERIFIED or (outcome.status is Status.UNKNOWN and outcome.margin > 0):
                    count += 1
                    if self._kinds[outcome.decided_by or spec["name"]] == "bound":
                        rounding = max(rounding, abs(outcome.margin - self._rows[outcome.index].margin))
                elif outcome.status is Status.UNKNOWN and self._kinds[spec["name"]] == "complete":
                    unconfirmed.append(outcome.index)
                else:
                    findings.append(_not_derived(outcome, spec["name"]))
        return _Derived(count, tuple(unconfirmed), rounding)

    def _run(self, stages: Sequence[Verifier], rows: Sequence[Row], seed: int) -> Iterable[Outcome]:
        cascade = Cascade(stages, self._batch_size)
        known = [row for row in rows if row.index < len(self._images)]
        for batch in _batches(known, cascade.chunk_size(self._network.mean.device)):
            indices = [row.index for row in batch]
            labels = self._labels[indices].to(self._network.mean.device)
            eps = self._head["eps_value"]
            problem = Problem.of(self._network, self._pixels(batch), labels, eps, indices, seed)
            for outcomes in cascade(self._network, problem):
                yield from outcomes

    def _pixels(self, batch: Sequence[Row]) -> Tensor:
        device = self._network.mean.device
        return pixels(self._images[[row.index for row in batch]].to(device), torch.float64)

    def _margins(self, x: Tensor, batch: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return the worst margins and what they may differ by, both (B,)."""
        labels = self._labels[[row.index for row in batch]].to(x.device)
        with torch.no_grad():
            logits = self._network(x)
        return margins_of(logits, labels).min(1).values, self._tolerance * scale_of(logits)


def _not_derived(outcome: Outcome, stage: str) -> str:
    if outcome.status is Status.FALSIFIED:
        return f"image {outcome.index} is verified but {outcome.decided_by} finds a counterexample"
    return f"image {outcome.index} is verified by {stage}, which in float64 gives a margin of {outcome.margin:.3g}"


def refuse_other_question(
    path: Path, head: Mapping[str, Any], network: BoundedNetwork, images: Tensor, labels: Tensor
) -> None:
    """Refuse a network or data that a ledger was not written for, by their hashes.

    Raises:
        UserError: saying what differs.
    """
    asked = {
        **head,
        "weights_sha256": hash_of_weights(network),
        "data_sha256": hash_of_tensors({"images": images, "labels": labels}),
        "images": len(images),
    }
    refuse_other(path, head, asked, advice="Give the network and the data that it was written for")


def _of(rows: Mapping[int, Row], status: Status) -> dict[int, Row]:
    return {index: row for index, row in rows.items() if row.status is status}


def _batches(rows: Sequence[Row], size: int | None) -> Iterable[Sequence[Row]]:
    size = size or 256
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _some(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
