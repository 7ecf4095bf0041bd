"""How far can each image be certified? The largest radius at which a bound holds, by bisection."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Radius
from expressive_losses.environment import software_and_device
from expressive_losses.errors import UserError
from expressive_losses.types import Box
from expressive_losses.verify.base import Problem, Status, Verifier
from expressive_losses.verify.cascade import Cascade, Outcome
from expressive_losses.verify.clean import Clean
from expressive_losses.verify.evaluation import (
    chunks,
    computing_in,
    evaluation_copy,
    problems,
    refuse_rounded_weights,
)
from expressive_losses.verify.head import head_of
from expressive_losses.verify.ledger import Ledger, read_ledger
from expressive_losses.verify.run import DEFAULTS, check_data, what_was_skipped
from expressive_losses.verify.settings import Settings
from expressive_losses.verify.shard import asked_indices
from expressive_losses.verify.summary import wilson, write_summary

SUMMARY_NAME = "radius.json"
#: Images at once where a complete verifier takes part: it may take minutes for one, and rows are written part by part.
_WITH_COMPLETE = 4


@dataclass(frozen=True)
class RadiusRow:
    """One image.

    Attributes:
        index: in the data set.
        label, prediction: classes; the prediction is of the clean image.
        radius: the largest one tried at which a bound held, pixel units, float64 exactly as tried; 0 where only the
            clean image is known to be classified as its label; ``None`` where it is not.
        failed: the smallest one tried above ``radius``, where no bound held; ``None`` where the largest radius held.
        decided_by: the stage whose bound held at ``radius``, or ``None``.
        seconds: the image's share of the time of its batches.
    """

    index: int
    label: int
    prediction: int
    radius: float | None
    failed: float | None
    decided_by: str | None
    seconds: float

    @classmethod
    def parse(cls, line: bytes) -> RadiusRow:
        """Read a line.

        Raises:
            ValueError: when it is not a row.
        """
        values = json.loads(line)
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
            raise ValueError("it does not have the keys of a row")
        if type(values["index"]) is not int or values["index"] < 0:
            raise ValueError(f"index {values['index']!r}")
        for name in ("radius", "failed"):
            if not isinstance(values[name], float | int | None) or isinstance(values[name], bool):
                raise ValueError(f"{name} {values[name]!r}")
        return cls(**values)


class RadiusLedger(Ledger):
    """The ledger ``radius.jsonl``."""

    file_name: ClassVar[str] = "radius.jsonl"
    format: ClassVar[str] = "expressive-losses-radius-1"
    row_type: ClassVar[type] = RadiusRow


def certified_radii(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    largest: float | Radius,
    stages: Sequence[Verifier],
    out: Path | str,
    settings: Settings = DEFAULTS,
    steps: int = 10,
) -> dict[str, Any]:
    """Find for each image the largest radius up to ``largest`` that the bounds certify, to ``largest / 2^steps``.

    Bisection between a radius that held and one that did not. Bounds need not be monotone in the radius, so a larger
    one might hold too; what is reported held itself, and with it, by inclusion, every smaller radius. Writes
    ``radius.jsonl`` and ``radius.json`` to ``out``.

    Args:
        network, images, labels, out, settings: as for :func:`expressive_losses.verify.run.verify`.
        largest: the largest radius to try, pixel units.
        stages: from ``build_stages``; those that can prove are used, each on what those before it did not prove.
        steps: bisections.

    Returns:
        The summary, see :func:`summarize_radii`.

    Raises:
        UserError: no stage that can prove, data that does not fit, a ledger of another question.
    """
    images, labels = images[: settings.first], labels[: settings.first].long()
    check_data(network, images, labels, largest)
    refuse_rounded_weights(network, getattr(torch, settings.dtype))
    stages = [stage for stage in stages if stage.kind in ("bound", "complete")]
    if not stages or not largest > 0 or steps < 1:
        raise UserError("radius: expected a bound, a largest radius > 0 and at least one step")
    head = {**head_of(network, images, labels, largest, stages, settings), "steps": steps}
    deadline = None if settings.budget is None else time.monotonic() + settings.budget
    evaluated = evaluation_copy(network, settings.device, getattr(torch, settings.dtype))
    cascade, indices = Cascade(stages, settings.batch_size), asked_indices(head)
    made_with = software_and_device(settings.device)
    with RadiusLedger(Path(out), head, settings.resume, made_with) as ledger, computing_in(evaluated.mean.dtype):
        done = ledger.rows
        together = cascade.chunk_size(evaluated.mean.device)
        if any(stage.kind == "complete" for stage in stages):
            together = min(together, _WITH_COMPLETE)
        parts = chunks(indices, together, done)
        hidden = None if settings.progress else True  # None: where nobody looks, too
        with tqdm(total=len(indices), initial=len(done), unit="image", disable=hidden) as bar:
            for problem in problems(evaluated, images, labels, 0.0, parts, settings.seed, deadline):
                rows = [row for row in _bisect(evaluated, problem, cascade, largest, steps) if row.index not in done]
                for row in rows:
                    ledger.append_row(row)
                ledger.note_skipped(what_was_skipped(cascade, evaluated))
                ledger.sync()
                bar.update(len(rows))
    summary = summarize_radii(ledger.head, ledger.rows.values())
    write_summary(Path(out), summary, SUMMARY_NAME)
    return summary


def read_radii(folder: Path | str) -> tuple[dict[str, Any], dict[int, RadiusRow]]:
    """Return head and rows of a folder's ``radius.jsonl``.

    Raises:
        UserError: there is none, or it is corrupt.
    """
    return read_ledger(Path(folder), RadiusLedger)


def summarize_radii(head: Mapping[str, Any], rows: Iterable[RadiusRow], points: int = 20) -> dict[str, Any]:
    """Return the certified accuracy at ``points`` + 1 radii from 0 to the largest, and the middle of the radii.

    Images without a row count as not certified.
    """
    rows = list(rows)
    total, largest = len(asked_indices(head)), head["eps_value"]
    radii = [row.radius or 0.0 for row in rows]
    return {
        "images": total,
        "not_reached": total - len(rows),
        "mean_radius": mean(radii) if radii else 0.0,
        "median_radius": median(radii) if radii else 0.0,
        "accuracy": [accuracy_at(rows, largest * (at / points), total) for at in range(points + 1)],
        "seconds": round(sum(row.seconds for row in rows), 3),
        "skipped": head.get("skipped", {}),
        "settings": {key: value for key, value in head.items() if key not in ("format", "skipped")},
    }


def accuracy_at(rows: Iterable[RadiusRow], eps: float, total: int) -> dict[str, float | int]:
    """Return which share of ``total`` images is certified at ``eps``, in percent, with its Wilson interval."""
    count = sum(row.radius is not None and row.radius >= eps for row in rows)
    low, high = wilson(count, total)
    return {"eps": eps, "percent": 100 * count / max(total, 1), "low": low, "high": high, "count": count}


def radius_table(summary: Mapping[str, Any]) -> str:
    """Return certified accuracy against radius as text for a terminal."""
    lines = [f"{'eps':>8} {'certified %':>12}   95 % interval    images"]
    for at in summary["accuracy"]:
        interval = f"[{at['low']:.2f}, {at['high']:.2f}]"
        lines.append(f"{at['eps']:>8.4g} {at['percent']:>12.2f}   {interval:<16} {at['count']} of {summary['images']}")
    lines.append(f"mean radius {summary['mean_radius']:.4g}, median {summary['median_radius']:.4g}")
    if missing := summary["not_reached"]:
        lines.append(
            f"\n{missing} images not reached in time count as not certified, and are in neither mean nor median;"
        )
        lines.append("--resume goes on.")
    lines += [f"\n{stage} was skipped: {reason}" for stage, reason in summary["skipped"].items()]
    return "\n".join(lines)


class _Interval:
    """For each image of a problem, a radius that held and one that did not, in float64 whatever the images are."""

    def __init__(self, count: int, largest: float) -> None:
        self.held = [0.0] * count
        self.failed = [float(largest)] * count
        self.by: list[str | None] = [None] * count
        self.open = list(range(count))

    def record(self, tried: Mapping[int, float], proofs: Mapping[int, str | None]) -> None:
        """Move one end to what was tried: the lower where a stage has proven it, else the upper."""
        for at, eps in tried.items():
            if proofs[at] is None:
                self.failed[at] = eps
            else:
                self.held[at], self.by[at] = eps, proofs[at]
        self.open = [at for at in self.open if self.held[at] < self.failed[at]]


def _bisect(network: BoundedNetwork, problem: Problem, cascade: Cascade, largest: float, steps: int) -> list[RadiusRow]:
    """Return the rows of a problem; none when its deadline passes before they are final."""
    began = time.monotonic()
    clean = Clean()(network, problem)
    interval = _Interval(len(problem), largest)
    interval.open = [at for at, status in enumerate(clean.status) if status is not Status.MISCLASSIFIED]
    for step in range(steps + 1):
        tried = {
            at: (interval.held[at] + interval.failed[at]) / 2 if step else interval.failed[at] for at in interval.open
        }
        proofs = _proofs(network, problem, cascade, tried)
        if problem.is_late():
            return []
        interval.record(tried, proofs)
    seconds = (time.monotonic() - began) / len(problem)
    return [
        RadiusRow(
            index=index,
            label=int(problem.labels[at]),
            prediction=int(clean.predictions[at]),
            radius=None if clean.status[at] is Status.MISCLASSIFIED else interval.held[at],
            failed=interval.failed[at] if at in interval.open else None,
            decided_by=interval.by[at],
            seconds=round(seconds, 6),
        )
        for at, index in enumerate(problem.indices)
    ]


def _proofs(
    network: BoundedNetwork, problem: Problem, cascade: Cascade, tried: Mapping[int, float]
) -> dict[int, str | None]:
    """Return by which stage each of the images (by position) is verified at its own radius."""
    if not tried:
        return {}
    chosen = problem.select(list(tried))
    asked = replace(chosen, box=box_around(chosen.images, list(tried.values())))
    by = {one.index: one.decided_by for batch in cascade(network, asked) for one in batch if _verified(one)}
    return {at: by.get(problem.indices[at]) for at in tried}


def _verified(outcome: Outcome) -> bool:
    return outcome.status is Status.VERIFIED


def box_around(images: Tensor, radii: Sequence[float]) -> Box:
    """Return the balls of one radius (pixel units) an image; computed in float64, then rounded to the images' dtype."""
    eps = torch.tensor(radii, dtype=torch.float64, device=images.device).view(-1, *[1] * (images.ndim - 1))
    box = Box.around(images.double(), eps)
    return Box(box.lower.to(images), box.upper.to(images))
