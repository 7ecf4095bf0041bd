"""Verified errors of DM-small beside the published ones, from results/dm_small.jsonl, as the table of docs/methods.md.

python benchmarks/dm_small.py            prints it
python benchmarks/dm_small.py --write    puts it into the document
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from expressive_losses.config import load

ROOT = Path(__file__).parent.parent
ROWS, DOCUMENT = ROOT / "results" / "dm_small.jsonl", ROOT / "docs" / "methods.md"
RADII = ("0.1", "0.2", "0.3", "0.4")
CONFIGS = {
    "ibp": "configs/crown_ibp/{data}/dm_small/ibp_*.yaml",
    "crown_ibp": "configs/crown_ibp/{data}/dm_small/crown_ibp_*.yaml",
    "adv_ibp": "configs/adv_ibp/{data}/dm_small/adv_ibp.yaml",
    "adv_crown_ibp": "configs/adv_ibp/{data}/dm_small/adv_crown_ibp.yaml",
}


def published(method: str, eps: str) -> float | None:
    """Return the published error verified by IBP in %, of several settings of kappa the smallest, from the configs."""
    if method not in CONFIGS:
        return None
    pattern = CONFIGS[method].format(data="mnist_0.1" if eps == "0.1" else "mnist_0.4")
    papers = [yaml.safe_load(path.read_text(encoding="utf-8"))["paper"] for path in ROOT.glob(pattern)]
    tested = [paper["others"][eps] if eps in paper.get("others", {}) else paper for paper in papers]
    return min(100 - paper["verified"] for paper in tested)


def variant(method: dict[str, Any]) -> str:
    """Return what a method has in place of what most lines have, in the papers' words."""
    variants = {
        ("kappa_end", 0.5): ", kappa 1 to 0.5",
        ("fosc_max", 0.0): ", c_max 0",
        ("beta1", 0.99): ", beta1 0.99",
    }
    return "".join(words for (key, value), words in variants.items() if method.get(key) == value)


def beginning(row: dict[str, Any]) -> tuple[str, str]:
    """Return the learning rate, and how the network began: by Shi et al. with their regulariser, or as torch does."""
    config = load(ROOT / re.search(r"--config (\S+)", row["command"])[1])
    return f"{config.optimizer.lr:g}", config.training.initialize


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table: a line a network, natural and verified errors, published ones in parentheses."""
    radii = [f"eps {eps}" for eps in RADII]
    columns = ["method", "trained at", "epochs", "lr", "initialisation", "natural", *radii, "training seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        name = row["method"]["name"]
        found = {key.removeprefix("verify-eps"): figures for key, figures in row.get("verify", {}).items()}
        cells = [_cell(found.get(eps), published(name, eps)) for eps in RADII]
        trained = "0.2" if row["eps"] == "0.1" else row["eps"]
        natural = f"{100 - row['natural']:.2f}"
        start = [name + variant(row["method"]), trained, str(row["epochs"]), *beginning(row), natural]
        lines.append("| " + " | ".join([*start, *cells, f"{row['training_seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, theirs: float | None) -> str:
    if found is None:
        return ""
    beside = "" if theirs is None else f" ({theirs:.2f})"
    return f"{100 - found['verified']['percent']:.2f}{beside}"


def with_table(text: str) -> str:
    """Return the document with the table of the committed rows."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    begin, end = "<!-- dm_small:begin -->\n", "<!-- dm_small:end -->"
    before, rest = text.split(begin)
    return before + begin + table(rows) + "\n" + end + rest.split(end)[1]


if __name__ == "__main__":
    new = with_table(DOCUMENT.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(new, encoding="utf-8")
    else:
        print(new.split("<!-- dm_small:begin -->\n")[1].split("<!-- dm_small:end -->")[0], end="")
