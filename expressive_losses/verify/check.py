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
from expressive_losses.verify.again import Again
from expressive_losses.verify.base import Status, Verifier
from expressive_losses.verify.cascade import Outcome
from expressive_losses.verify.evaluation import computing_in, evaluation_copy
from expressive_losses.verify.head import hash_of_tensors, hash_of_weights
from expressive_losses.verify.ledger import FILE_NAME, Row, load_witness, read_ledger, refuse_other, witness_name
from expressive_losses.verify.radius import RadiusRow
from expressive_losses.verify.shard import asked_indices

SHOWN = 5  # contradictions named in the message
#: Of the largest logit: by how much the logits of one forward pass in float32 may differ from those in float64.
LOGITS_TOLERANCE = 1e-5
#: The run took the threshold from the logits of its own precision.
SCALE_TOLERANCE = 1 - 1e-3


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
        else:
            parts.append("proofs were not derived again (--bounds does)")
        if self.attacked:
            parts.append(f"{self.attacked} verified images were attacked again, in vain")
        if self.unconfirmed:
            parts.append(f"{len(self.unconfirmed)} could not be decided again: {some(self.unconfirmed)}")
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
    verified rows have a margin above their stage's tolerance, a stage that can prove, and no counterexample.

    A float32 run is met with two tolerances. The box: |x' - x| <= eps is evaluated in float64, with x = k/255
    and eps as they are meant, and may fail by the machine epsilon of the run's dtype (2^-23 for float32), because the
    run's box is rounded in its corners; 0 <= x' <= 1 must hold exactly. The logits: a margin counts as not positive up
    to ``tolerance`` times the largest logit (or 1), or what rounding may add up to in the layers if that is more.

    With ``bounds``, a derived bound must exceed the worst case of float64's rounding errors, which makes it a proof;
    and of stages that are mere arithmetic (IBP, CROWN-IBP, CROWN) the recorded margin must not exceed the derived one
    by more than rounding explains, so that also a margin in the ledger is what it says.

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
    again = Again(head, evaluated, images, labels, lambda row: head["eps_value"], tolerance, batch_size)
    looked = _Check(folder, rows, again)
    with computing_in(torch.float64):
        looked.plain_rows()
        counterexamples, borderline = looked.counterexamples()
        attacked = looked.attack(attacks, seed)
        derived = looked.bounds() if bounds else _Derived()
    if looked.findings:
        raise Contradiction(folder / FILE_NAME, looked.findings)
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


class _Check:
    """A ledger, with what is found wrong with it."""

    def __init__(self, folder: Path, rows: Mapping[int, Row], again: Again[Row]) -> None:
        self._folder, self._rows, self._again = folder, rows, again
        self.findings: list[str] = []

    def plain_rows(self) -> None:
        """Look at labels, clean predictions, and the form of the rows."""
        asked = asked_indices(self._again.head)
        self.findings += [f"image {index} was not asked for" for index in self._rows if index not in asked]
        for batch in self._again.batches(row for index, row in self._rows.items() if index in asked):
            margins, slack = self._again.margins(self._again.pixels(batch), batch)
            thresholds = self._again.thresholds(batch)
            for row, *numbers in zip(batch, margins, slack, thresholds, strict=True):
                self.findings += [f"image {row.index} {text}" for text in self._wrong(row, *numbers)]

    def _wrong(self, row: Row, worst: float, allowed: float, threshold: float) -> Iterable[str]:
        yield from wrong_label(row, int(self._again.labels[row.index]))
        if (row.status is Status.MISCLASSIFIED and worst > allowed) or (
            row.status is not Status.MISCLASSIFIED and worst <= -allowed
        ):
            yield f"is {row.status} but its clean margin is {worst:.3g}"
        if row.status is Status.VERIFIED:
            yield from self._wrong_proof(row, threshold)
        if row.status is Status.FALSIFIED and self._again.kinds.get(row.decided_by) not in ("attack", "complete"):
            yield f"is falsified by '{row.decided_by}', which is no attack of this run"

    def _wrong_proof(self, row: Row, threshold: float) -> Iterable[str]:
        if self._again.kinds.get(row.decided_by) not in ("bound", "complete"):
            yield f"is verified by '{row.decided_by}', which is no bound of this run"
        elif row.margin is None or not row.margin > SCALE_TOLERANCE * threshold:
            yield f"is verified with margin {row.margin}, not above its threshold of {threshold:.3g}"
        if row.witness is not None or (self._folder / witness_name(row.index)).exists():
            yield "is verified but has a counterexample"

    def counterexamples(self) -> tuple[int, tuple[int, ...]]:
        """Evaluate the counterexamples; return how many hold, and which of those only up to rounding."""
        held, borderline = 0, []
        for batch in self._again.batches(_of(self._rows, Status.FALSIFIED).values()):
            points = self._points(batch)
            batch = [row for row in batch if row.index in points]
            if not batch:
                continue
            x = torch.stack([points[row.index] for row in batch])
            outside = self._distance_outside(x, batch)
            margins, slack = self._again.margins(x, batch)
            for row, away, worst, allowed in zip(batch, outside, margins, slack, strict=True):
                if away > torch.finfo(getattr(torch, self._again.head["dtype"])).eps:
                    self.findings.append(f"the counterexample of image {row.index} is {away:.3g} outside its box")
                elif not worst <= allowed:  # a NaN refutes nothing
                    self.findings.append(f"the counterexample of image {row.index} has margin {worst:.3g} > 0")
                else:
                    held += 1
                    borderline += [row.index] if worst > 0 else []
        return held, tuple(borderline)

    def _points(self, batch: Sequence[Row]) -> dict[int, Tensor]:
        points, network = {}, self._again.network
        for row in batch:
            try:
                point = torch.from_numpy(load_witness(self._folder, row)).to(network.mean)
            except UserError as error:
                self.findings.append(str(error))
                continue
            if tuple(point.shape) == network.shape:
                points[row.index] = point
            else:
                self.findings.append(f"the counterexample of image {row.index} has shape {tuple(point.shape)}")
        return points

    def _distance_outside(self, x: Tensor, batch: Sequence[Row]) -> list[float]:
        """Return how far each point is out of its ball; infinite where it is out of [0, 1] or not a number."""
        away = ((x - self._again.pixels(batch)).abs() - self._again.head["eps_value"]).flatten(1).amax(1)
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return torch.where(inside, away, torch.inf).tolist()

    def attack(self, stages: Sequence[Verifier], seed: int) -> int:
        """Attack the verified rows; return how many there are."""
        return attack(self._again, _of(self._rows, Status.VERIFIED).values(), stages, seed, self.findings)

    def bounds(self) -> _Derived:
        """Derive the bounds of the verified rows again, with the stages of the ledger up to the one that decided.

        In float64 a bound above the worst case of its rounding errors is a proof. Stages that do no more than
        arithmetic must also give the recorded margin, up to what rounding may have added to it in the run.
        """
        verified = _of(self._rows, Status.VERIFIED)
        allowed = self._again.rounding(verified.values())
        count, unconfirmed, difference = 0, [], 0.0
        for name in self._again.kinds:
            mine = [row for row in verified.values() if row.decided_by == name and row.margin is not None]
            if not mine or self._again.kinds[name] not in ("bound", "complete"):
                continue
            stages = self._again.stages_up_to(name)
            exact = all(stage.reproducible for stage in stages)
            for outcome in self._again.run(stages, mine, self._again.head["seed"]):
                recorded, (there, here) = verified[outcome.index].margin, allowed[outcome.index]
                if outcome.status is not Status.FALSIFIED and outcome.margin > here:
                    count += 1
                    if self._again.kinds[outcome.decided_by or name] == "bound":
                        difference = max(difference, abs(outcome.margin - recorded))
                    if exact and recorded > outcome.margin + there + here:
                        self.findings.append(
                            f"image {outcome.index} is verified with margin {recorded:.6g}, for which {name} in "
                            f"float64 gives {outcome.margin:.6g}: more than rounding explains ({there:.1g})"
                        )
                elif outcome.status is Status.UNKNOWN and self._again.kinds[name] == "complete":
                    unconfirmed.append(outcome.index)
                else:
                    self.findings.append(not_derived(outcome, name))
        return _Derived(count, tuple(unconfirmed), difference)


def wrong_label(row: Row | RadiusRow, label: int) -> Iterable[str]:
    """Yield what is wrong with the label of a row."""
    if row.label != label:
        yield f"has label {label}, not {row.label}"


def attack(again: Again, rows: Iterable[Any], stages: Sequence[Verifier], seed: int, findings: list[str]) -> int:
    """Attack images that are said to be robust; return how many there are."""
    rows = list(rows)
    if not stages:
        return 0
    for outcome in again.run(stages, rows, seed):
        if outcome.status is Status.FALSIFIED:
            findings.append(f"image {outcome.index} is verified but {outcome.decided_by} finds a counterexample")
    return len(rows)


def not_derived(outcome: Outcome, stage: str) -> str:
    """Return the finding about a proof that does not hold in float64."""
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


def some(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
