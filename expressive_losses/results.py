"""Rows of what was really run: a run directory becomes one JSON line with its command, seed, hardware and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError

_ENVIRONMENT = ("time", "git", "device", "threads", "torch", "auto_LiRPA", "python")


def row_of(run: Path) -> dict[str, Any]:
    """Return the row of a finished run directory.

    Raises:
        UserError: when the run has no summary yet.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{run}: not a finished run (no summary.json)") from None
    summary.pop("checkpoint", None)
    verified = {path.parent.name: _figures(path) for path in sorted(run.glob("verify-*/summary.json"))}
    row = {**summary, "command": _portable(environment["command"])}
    return {**row, **{key: environment[key] for key in _ENVIRONMENT}, **({"verify": verified} if verified else {})}


def write_rows(runs: Sequence[Path], path: Path) -> None:
    """Write the rows of several runs as JSON lines, in the order given."""
    from expressive_losses.run import write_text

    write_text(path, "".join(json.dumps(row_of(run)) + "\n" for run in runs))


def _figures(path: Path) -> dict[str, Any]:
    summary = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: summary[key] for key in ("images", "natural", "adversarial", "verified", "status", "decided_by", "seconds")
    }


def _portable(command: Sequence[str]) -> str:
    """Return the command as it would be typed in the repository, without the places of one machine."""
    words, skip = ["python"], False
    for word in [Path(command[0]).name, *command[1:]]:
        if skip:
            skip = False
        elif word in ("--out", "--data-dir"):
            skip = True
        elif not word.startswith(("--out=", "--data-dir=")):
            words.append(word)
    return " ".join(words)


if __name__ == "__main__":
    import sys

    write_rows([Path(run) for run in sys.argv[2:]], Path(sys.argv[1]))
