"""From rows to accuracies, with confidence intervals, as JSON and as a table."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expressive_losses.registry import VERIFIERS
from expressive_losses.verify.base import Status
from expressive_losses.verify.files import write_whole
from expressive_losses.verify.ledger import Row
from expressive_losses.verify.shard import asked_indices

FILE_NAME = "summary.json"
Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, in percent.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); (0, 100) without trials.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if trials == 0:
        return 0.0, 100.0
    p, z2 = successes / trials, Z_95**2 / trials
    middle = p + z2 / 2
    spread = math.sqrt(z2 * (p * (1 - p) + z2 / 4))
    return 100 * max(0.0, (middle - spread) / (1 + z2)), 100 * min(1.0, (middle + spread) / (1 + z2))


def summarize(head: Mapping[str, Any], rows: Iterable[Row], attacks: Iterable[str]) -> dict[str, Any]:
    """Return the figures of a run.

    Every percentage is of all images asked for. Images without a row (the time budget ended before) count as
    wrong in each of them, so no figure is flattered.

    Args:
        head: of the ledger; "images" is how many were asked for, "shard" which of those.
        rows: of the ledger.
        attacks: names of the stages that are attacks, which define adversarial accuracy; without one it is
            ``None``. A counterexample of a stage before one of them counts as found: it never got that image.
    """
    rows, total, attacks = list(rows), len(asked_indices(head)), set(attacks)
    counts = Counter(row.status for row in rows)
    natural = len(rows) - counts[Status.MISCLASSIFIED]
    seen = _up_to_the_last(attacks, head)
    attacked = sum(row.status is Status.FALSIFIED and row.decided_by in seen for row in rows)
    return {
        "images": total,
        "not_reached": total - len(rows),
        "natural": _accuracy(natural, total),
        "adversarial": _accuracy(natural - attacked, total) if attacks else None,
        "verified": _accuracy(counts[Status.VERIFIED], total),
        "status": {status.value: counts[status] for status in Status},
        "attacks": [describe_stage(stage) for stage in head["stages"] if stage["name"] in attacks],
        "decided_by": _by_stage(head, rows),
        "seconds": round(sum(row.seconds for row in rows), 3),
        "skipped": head.get("skipped", {}),
        "settings": {key: value for key, value in head.items() if key not in ("format", "skipped")},
    }


def _up_to_the_last(attacks: set[str], head: Mapping[str, Any]) -> list[str]:
    """Return the names of the stages up to the last attack."""
    names = [stage["name"] for stage in head["stages"]]
    return names[: max((at + 1 for at, name in enumerate(names) if name in attacks), default=0)]


def attacks_of(head: Mapping[str, Any]) -> list[str]:
    """Return the names of the stages of a ledger that are attacks."""
    names = [stage["name"] for stage in head["stages"]]
    return [name for name in names if VERIFIERS[name].kind == "attack"]


def describe_stage(stage: Mapping[str, Any]) -> str:
    """Return a stage of a ledger's head in words: ``pgd (steps 40, ...)``; for ``attack``, the attack that it ran."""
    if isinstance(stage.get("attack"), Mapping):
        stage = stage["attack"]
    fields = ", ".join(f"{key} {value}" for key, value in stage.items() if key != "name")
    return f"{stage['name']} ({fields})" if fields else stage["name"]


def _accuracy(successes: int, trials: int) -> dict[str, float | int]:
    low, high = wilson(successes, trials)
    return {"percent": 100 * successes / max(trials, 1), "low": low, "high": high, "count": successes}


def _by_stage(head: Mapping[str, Any], rows: list[Row]) -> dict[str, dict[str, float | int]]:
    """Return, by stage, how many images it gave each status, and the seconds that those took altogether."""
    table: dict[str, dict[str, float | int]] = {}
    for name in [*(stage["name"] for stage in head["stages"]), None]:
        mine = [row for row in rows if row.decided_by == name]
        counts = Counter(row.status.value for row in mine)
        table[name or "undecided"] = {**counts, "seconds": round(sum(row.seconds for row in mine), 3)}
    return table


def write_summary(folder: Path, summary: Mapping[str, Any], name: str = FILE_NAME) -> Path:
    """Write ``summary.json`` (or ``name``), whole or not at all; return its path."""
    path = Path(folder) / name
    write_whole(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return path


def table_of(summary: Mapping[str, Any]) -> str:
    """Return the figures as text for a terminal."""
    lines = [f"{'accuracy':<12} {'%':>7}   95 % interval    images"]
    lines += [
        _accuracy_line(name, summary[name], summary["images"])
        for name in ("natural", "adversarial", "verified")
        if summary[name] is not None
    ]
    lines += [f"under {attack}" for attack in summary.get("attacks", [])]
    lines += ["", f"{'decided by':<12} {'images':>7} {'seconds':>9}"]
    for name, counts in summary["decided_by"].items():
        each = {key: value for key, value in counts.items() if key != "seconds"}
        what = ", ".join(f"{value} {key}" for key, value in each.items())
        lines.append(f"{name:<12} {sum(each.values()):>7} {counts['seconds']:>9.2f}  {what}".rstrip())
    lines += [f"\n{stage} was skipped: {reason}" for stage, reason in summary.get("skipped", {}).items()]
    if summary["not_reached"]:
        lines += [
            "",
            f"{summary['not_reached']} images not reached in time count as wrong; --resume goes on.",
        ]
    return "\n".join(lines)


def _accuracy_line(name: str, figure: Mapping[str, float], total: int) -> str:
    interval = f"[{figure['low']:.2f}, {figure['high']:.2f}]"
    return f"{name:<12} {figure['percent']:>7.2f}   {interval:<16} {figure['count']} of {total}"
