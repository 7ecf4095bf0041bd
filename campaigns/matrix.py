"""Note in one row what the tests said with one combination of Python, torch and auto_LiRPA.

    python -m campaigns.matrix tests.xml --out results/test_matrix.jsonl --tests "the pytest arguments"

Called by scripts/test_matrix.sh inside the environment that was tested; tests.xml is pytest's ``--junitxml``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import torch

from expressive_losses.environment import environment

KEYS = ("time", "git", "device", "platform", "python", "torch", "torchvision", "auto_LiRPA", "numpy")


def row(report: Path, arguments: str) -> dict:
    """Return the row of a JUnit file: the command, counts, the names of what failed, and what it ran on."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    tests, *others = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    wrong = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    about = environment(torch.device("cpu"))
    return {
        "campaign": "test matrix",
        "command": f"python -m pytest -q {arguments}".strip(),
        "passed": tests - sum(others),
        "failed": others[0] + others[1],
        "skipped": others[2],
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in wrong],
        "seconds": round(float(suite.get("time", 0)), 1),
        **{key: about.get(key) for key in KEYS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Append the row."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.matrix", description=__doc__)
    parser.add_argument("report", type=Path, help="pytest's --junitxml file")
    parser.add_argument("--out", type=Path, required=True, help="append the row to this file")
    parser.add_argument("--tests", default="", help="what pytest was called with")
    options = parser.parse_args(arguments)
    with open(options.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row(options.report, options.tests)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
