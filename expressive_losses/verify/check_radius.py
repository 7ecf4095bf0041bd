"""Check certified radii from outside: each at the radius that it states, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.verify.again import Again
from expressive_losses.verify.base import Status, Verifier
from expressive_losses.verify.check import (
    LOGITS_TOLERANCE,
    Contradiction,
    attack,
    not_derived,
    refuse_other_question,
    some,
    wrong_label,
)
from expressive_losses.verify.evaluation import computing_in, evaluation_copy
from expressive_losses.verify.radius import RadiusLedger, RadiusRow, read_radii
from expressive_losses.verify.shard import asked_indices


@dataclass(frozen=True)
class CheckedRadii:
    """What was looked at, when nothing was contradicted.

    Attributes:
        rows: of the ledger.
        missing: images that were asked for and have no row.
        bounds: radii at which a bound was derived again; ``None``: not asked for.
        unconfirmed: images of which a complete verifier could not decide again, in time.
        attacked: images that were attacked again at their radius, in vain.
    """

    rows: int
    missing: int
    bounds: int | None
    unconfirmed: tuple[int, ...]
    attacked: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rows} rows agree with the network"]
        if self.bounds is not None:
            parts.append(f"{self.bounds} radii hold in float64")
        if self.attacked:
            parts.append(f"{self.attacked} images were attacked again at their radius, in vain")
        if self.unconfirmed:
            parts.append(f"{len(self.unconfirmed)} could not be decided again: {some(self.unconfirmed)}")
        if self.missing:
            parts.append(f"{self.missing} images have no row yet")
        return ", ".join(parts)


def check_radii(
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
) -> CheckedRadii:
    """Evaluate every row of ``radius.jsonl`` again, on a float64 copy of the plain network.

    Always: labels; clean predictions; that radii lie between 0 and the largest that was asked for, and come from a
    stage that can prove. The arguments are those of :func:`expressive_losses.verify.check.check`; ``bounds`` derives
    the bound at each image's radius, which must exceed the worst case of float64's rounding errors, and ``attacks``
    look for a counterexample within it.

    Raises:
        Contradiction: when a row does not hold; lists which.
        UserError: another network or other data, or a ledger that cannot be read.
    """
    path = Path(folder) / RadiusLedger.file_name
    head, rows = read_radii(folder)
    images, labels = images[: head["first"]], labels[: head["first"]].long()
    refuse_other_question(path, head, network, images, labels)
    evaluated = evaluation_copy(network, torch.device(device), torch.float64, fast_chain=False)
    again: Again[RadiusRow] = Again(
        head, evaluated, images, labels, lambda row: row.radius or 0.0, tolerance, batch_size
    )
    with computing_in(torch.float64):
        findings = _plain_rows(again, rows)
        proven = [row for row in rows.values() if row.radius] if not findings else []
        attacked = attack(again, proven, attacks, seed, findings)
        count, unconfirmed = _bounds(again, proven, findings) if bounds else (None, ())
    if findings:
        raise Contradiction(path, findings)
    return CheckedRadii(len(rows), len(set(asked_indices(head)) - set(rows)), count, unconfirmed, attacked)


def _plain_rows(again: Again[RadiusRow], rows: Mapping[int, RadiusRow]) -> list[str]:
    """Return what is wrong with labels, clean predictions, and the form of the rows."""
    asked = asked_indices(again.head)
    findings = [f"image {index} was not asked for" for index in rows if index not in asked]
    for batch in again.batches(row for index, row in rows.items() if index in asked):
        margins, slack = again.margins(again.pixels(batch), batch)
        for row, worst, allowed in zip(batch, margins, slack, strict=True):
            findings += [f"image {row.index} {text}" for text in _wrong(again, row, worst, allowed)]
    return findings


def _wrong(again: Again[RadiusRow], row: RadiusRow, worst: float, allowed: float) -> Iterable[str]:
    yield from wrong_label(row, int(again.labels[row.index]))
    if (row.radius is None and worst > allowed) or (row.radius is not None and worst <= -allowed):
        yield f"has radius {row.radius} but its clean margin is {worst:.3g}"
    if row.radius is None:
        return
    if not 0 <= row.radius <= again.head["eps_value"] or (row.failed is not None and not row.radius < row.failed):
        yield f"has radius {row.radius}, failed {row.failed}, of at most {again.head['eps_value']}"
    if row.radius > 0 and again.kinds.get(row.decided_by) not in ("bound", "complete"):
        yield f"has a radius by '{row.decided_by}', which is no bound of this run"


def _bounds(again: Again[RadiusRow], proven: Sequence[RadiusRow], findings: list[str]) -> tuple[int, tuple[int, ...]]:
    """Derive the bounds at the radii again; return how many hold, and of which images that could not be decided."""
    allowed, count, unconfirmed = again.rounding(proven), 0, []
    for name in {row.decided_by: None for row in proven}:
        mine = [row for row in proven if row.decided_by == name]
        for outcome in again.run(again.stages_up_to(name), mine, again.head["seed"]):
            if outcome.status is not Status.FALSIFIED and outcome.margin > allowed[outcome.index][1]:
                count += 1
            elif outcome.status is Status.UNKNOWN and again.kinds[name] == "complete":
                unconfirmed.append(outcome.index)
            else:
                findings.append(not_derived(outcome, name))
    return count, tuple(unconfirmed)
