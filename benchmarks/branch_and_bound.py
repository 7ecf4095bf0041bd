"""Rows and tables of docs/branch_and_bound.md.

    python benchmarks/branch_and_bound.py rows RUN LEDGER >> results/branch_and_bound.jsonl
    python benchmarks/branch_and_bound.py write

``rows`` prints one row about a trained network (RUN: the folder that train.py wrote) and a verification of it (LEDGER:
the folder that verify.py wrote). ``write`` puts the tables of the committed rows, those of against_abcrown.py too, into
the document; a test compares them.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from expressive_losses.results import read_rows, row_of
from expressive_losses.verify import read_ledger, summarize
from expressive_losses.verify.summary import attacks_of

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "results" / "branch_and_bound.jsonl"
COMPARED = ROOT / "results" / "branch_and_bound_against_abcrown.jsonl"
DOCUMENT = ROOT / "docs" / "branch_and_bound.md"
MADE_WITH = ("expressive_losses", "git", "device", "threads", "torch", "auto_LiRPA", "python")
STAGES = {
    "pgd": "PGD, 40 steps",
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "alpha-CROWN",
    "bab": "branch-and-bound",
}


def row(run: Path, ledger: Path) -> dict[str, Any]:
    """Return the row: how the network was trained, how it was verified, and the counts and seconds of each stage."""
    trained, (head, rows) = row_of(run), read_ledger(ledger)
    summary = summarize(head, rows.values(), attacks_of(head))
    keys = ("images", "not_reached", "status", "decided_by", "attacks")
    asked = ("weights_sha256", "dataset", "split", "first", "eps", "stages", "dtype", "seed")
    return {
        "trained": {**trained, "training": yaml.safe_load((run / "config.yaml").read_text())["training"]},
        "command": f"python verify.py --model model.pt --bound cascade --first {head['first']} "
        f"--set bab.timeout={stage_of(head, 'bab')['timeout']:g}",
        "settings": {key: head[key] for key in asked},
        "natural": summary["natural"]["count"],
        "not_falsified_by_pgd": summary["adversarial"]["count"],
        **{key: summary[key] for key in keys},
        "hardware": head["made_with"][0]["device"],
        "date": datetime.date.fromtimestamp((ledger / "ledger.jsonl").stat().st_mtime).isoformat(),
        "made_with": [{key: one[key] for key in MADE_WITH} for one in head["made_with"]],
    }


def stage_of(head: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the settings of a stage."""
    return next(stage for stage in head["stages"] if stage["name"] == name)


def stages_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, for each network, how many images are proven up to each stage, and the seconds of those it decided."""
    lines = []
    for one in rows:
        trained, method, decided = one["trained"], one["trained"]["method"], one["decided_by"]
        limit = stage_of(one["settings"], "bab")["timeout"]
        lines += [
            f"`{trained['model']['name']}`, {method['name']} alpha {method['alpha']:g}, {trained['data']}, "
            f"eps {one['settings']['eps']}, first {one['images']} test images, {limit:g} s an image:",
            "",
            "| stage | still to decide | verified | falsified | verified so far | seconds |",
            "|---|---|---|---|---|---|",
        ]
        left, verified = one["natural"], 0
        lines.append(f"| clean | {one['images']} | | {one['images'] - left} misclassified | | |")
        for name in (stage["name"] for stage in one["settings"]["stages"] if stage["name"] in STAGES):
            title, here = STAGES[name], decided[name]
            proven, refuted = here.get("verified", 0), here.get("falsified", 0)
            verified += proven
            shown = "" if name == "pgd" else str(proven)
            lines.append(f"| {title} | {left} | {shown} | {refuted or ''} | {verified} | {here['seconds']:.1f} |")
            left -= proven + refuted
        lines += [f"| left unknown | {left} | | | | {decided['undecided']['seconds']:.1f} |", ""]
    return "\n".join(lines).rstrip()


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what both tools decided of the same images."""
    lines = [
        "| network | images | tool | verified | falsified | unknown | median seconds | median CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in rows:
        groups.setdefault((f"{one['method']['name']} {one['method']['alpha']:g}", one["tool"]), []).append(one)
    for (network, tool), group in groups.items():
        counts = [sum(one["status"] == status for one in group) for status in ("verified", "falsified", "unknown")]
        times = [f"{median(one[key] for one in group):.1f}" for key in ("seconds", "cpu_seconds")]
        lines.append(f"| {network} | {len(group)} | {tool} | {' | '.join(map(str, counts))} | {' | '.join(times)} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return the document with the tables of the committed rows between its markers."""
    for name, table in (("stages", stages_table(read_rows(ROWS))), ("abcrown", comparison_table(read_rows(COMPARED)))):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        text, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, name
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(json.dumps(row(Path(sys.argv[2]), Path(sys.argv[3]))))
