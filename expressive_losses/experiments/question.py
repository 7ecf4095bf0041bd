"""What a verification of a cell asks, in the words of a ledger's head."""

from __future__ import annotations

from typing import Any

from expressive_losses.cli.verify import stage_options, verify_parser
from expressive_losses.experiments.grid import Cell
from expressive_losses.verify import build_stages


def question(cell: Cell, name: str) -> dict[str, Any]:
    """Return what the head of the ledger of a verification says of the question."""
    options = verify_parser().parse_args(["--model", "MODEL", *cell.verify_arguments(name)])
    stages = build_stages(options.bound, stage_options(options.assignments))
    return {
        "dataset": cell.resolved.data.name,
        "split": options.split,
        "first": options.first,
        "shard": None,
        "eps": options.eps or cell.resolved.eps.target.text,
        "stages": [stage.spec() for stage in stages],
        "dtype": options.dtype,
        "seed": options.seed,
    }
