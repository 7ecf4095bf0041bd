"""Rows of what was really run: a run directory becomes one JSON line with its command, seed, hardware and figures."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError
from expressive_losses.run import read_jsonl, write_text

#: Of a verification's settings, what a row keeps beside its figures.
QUESTION = ("dataset", "split", "eps", "first", "stages", "dtype", "seed")

_ENVIRONMENT = ("time", "git", "device", "threads", "torch", "auto_LiRPA", "python")


def row_of(run: Path) -> dict[str, Any]:
    """Return the row of a finished run directory.

    Raises:
        UserError: when the run has no summary yet, or a damaged one.
    """
    try:
        summary, environment = _read(run / "summary.json"), _read(run / "environment.json")
    except OSError:
        raise UserError(f"{run}: not a finished run (no summary.json)") from None
    summary.pop("checkpoint", None)
    verified = {path.parent.name: verification_of(path.parent) for path in sorted(run.glob("verify-*/summary.json"))}
    row = {**summary, "command": _portable(environment["command"])}
    return {**row, **{key: environment[key] for key in _ENVIRONMENT}, **({"verify": verified} if verified else {})}


def write_rows(runs: Sequence[Path], path: Path) -> None:
    """Write the rows of several runs as JSON lines, in the order given."""
    write_text(path, "".join(json.dumps(row_of(run)) + "\n" for run in runs))


def verification_of(folder: Path) -> dict[str, Any]:
    """Return the figures of a finished verification, what it asked, and the commits that computed it."""
    summary = _read(folder / "summary.json")
    figures = ("images", "natural", "adversarial", "verified", "status", "decided_by", "seconds")
    settings = summary["settings"]
    return {
        **{key: summary[key] for key in figures},
        **{key: settings[key] for key in QUESTION},
        "git": list(dict.fromkeys(made["git"] for made in settings["made_with"])),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: damaged; delete it, and its run or verification goes on with --resume") from None


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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a committed results file."""
    return read_jsonl(path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: one line for each experiment, mean and standard deviation over its seeds.

    All figures are percentages of the held-out images: correct, correct under the test attack, above 0 by IBP in
    training's own evaluation (float32, no tolerance: no proof), proven by the whole cascade of verify.py.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        asked = row["data"], row["eps"], _method(row), row["model"]["name"], _without_seed(row.get("command", ""))
        groups.setdefault(asked, []).append(row)
    lines = [
        "| data | eps | method | network | natural | PGD | IBP in float32 | verified by the cascade | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, eps, method, model, _), group in groups.items():
        figures = " | ".join(_mean(group, key) for key in ("natural", "adversarial", "ibp"))
        lines.append(f"| {data} | {eps} | {method} | {model} | {figures} | {_cascade(group)} | {len(group)} |")
    return "\n".join(lines)


def _method(row: dict[str, Any]) -> str:
    method = row["method"]
    return method["name"] + (f" {method['alpha']:g}" if "alpha" in method else "")


def _without_seed(command: str) -> str:
    """Return what makes an experiment of a command: seeds are runs of one, another config or option is another."""
    return re.sub(r" --(seed[ =]\S+|quiet|resume)(?= |$)", "", command)


def _cascade(group: Sequence[dict[str, Any]]) -> str:
    """Return verified accuracy by verify.py's cascade, and of how many images; "not run" unless every seed has it.

    Only on the test images and at the radius of the line, and only the same images for all seeds.
    """
    found = [_of_its_line(row) for row in group]
    counts = {one["images"] for one in found if one}
    if not all(found) or len(counts) > 1:
        return "not run"
    return f"{_spread([one['verified']['percent'] for one in found])} (of {counts.pop()})"


def _of_its_line(row: dict[str, Any]) -> dict[str, Any] | None:
    asked = {"dataset": row["data"], "split": "test", "eps": row["eps"]}  # rows of older commits do not say
    runs = (run for name, run in row.get("verify", {}).items() if "cascade" in name.split("-"))
    return next((run for run in runs if all(run.get(key, value) == value for key, value in asked.items())), None)


def _mean(group: Sequence[dict[str, Any]], key: str) -> str:
    return _spread([row[key] for row in group])


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main(arguments: Sequence[str]) -> None:
    """``rows FILE RUN...`` writes the rows of runs; ``table FILE...`` prints their table."""
    command, *rest = arguments or [""]
    if {"-h", "--help"} & set(arguments):
        print(main.__doc__.replace("``", ""))
    elif command == "rows" and len(rest) >= 2:
        write_rows([Path(run) for run in rest[1:]], Path(rest[0]))
    elif command == "table" and rest:
        print(table([row for path in rest for row in _rows_of_runs(Path(path))]))
    else:
        raise UserError("expected: rows FILE RUN..., or table FILE...")


def _rows_of_runs(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that is there.

    Raises:
        UserError: there is none, or its rows are not those of trainings.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected one that `rows FILE RUN...` wrote")
    rows = read_rows(path)
    if any(not {"data", "eps", "method", "model", "natural", "adversarial", "ibp"} <= set(row) for row in rows):
        raise UserError(f"{path}: its rows are not those of trainings; expected a file that `rows FILE RUN...` wrote")
    return rows


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
