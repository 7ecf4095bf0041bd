"""Verified errors of DM-small beside the published ones, from results/dm_small.jsonl, as the table of docs/methods.md.

python benchmarks/dm_small.py            prints it
python benchmarks/dm_small.py --write    puts it into the document
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROWS, DOCUMENT = ROOT / "results" / "dm_small.jsonl", ROOT / "docs" / "methods.md"
#: Verified by IBP, errors in %, by training radius and tested radius: CROWN-IBP's paper, table C (the best of its three
#: settings of kappa at each radius), and AdvIBP's, table 4.
PUBLISHED = {
    "ibp": {"0.1": 3.60, "0.2": 8.64, "0.3": 13.99, "0.4": 23.40},
    "crown_ibp": {"0.1": 3.44, "0.2": 6.11, "0.3": 9.40, "0.4": 15.21},
    "adv_ibp": {"0.1": 3.69, "0.2": 7.68, "0.3": 10.80, "0.4": 17.57},
    "adv_crown_ibp": {"0.1": 3.19, "0.2": 6.02, "0.3": 9.03, "0.4": 14.42},
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table: a line a network, natural and verified errors, published ones in parentheses."""
    lines = [
        "| method | trained at | epochs | natural | eps 0.1 | eps 0.2 | eps 0.3 | eps 0.4 | training seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["method"]["name"]
        found = {key.removeprefix("verify-eps"): figures for key, figures in row.get("verify", {}).items()}
        cells = [_cell(found.get(eps), PUBLISHED.get(name, {}).get(eps)) for eps in ("0.1", "0.2", "0.3", "0.4")]
        trained = "0.2" if row["eps"] == "0.1" else row["eps"]
        natural = f"{100 - row['natural']:.2f}"
        start = [name, trained, str(row["epochs"]), natural]
        lines.append("| " + " | ".join([*start, *cells, f"{row['training_seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, published: float | None) -> str:
    if found is None:
        return ""
    beside = "" if published is None else f" ({published:.2f})"
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
