"""What stands above and below a table: what all lines have in common, what its columns are, what was run of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expressive_losses.experiments.groups import in_short
from expressive_losses.experiments.legend import legend
from expressive_losses.experiments.page import Page
from expressive_losses.experiments.spec import Experiment, Scale, ScaleSpec
from expressive_losses.experiments.table import Line

WARNINGS = {
    "smoke": "SMOKE SCALE: a few images of handwritten digits, a tiny network, a few epochs, whatever a line is named "
    "after. The figures show that the chain runs; they say nothing about the method. Published figures "
    "are of other data and left out.",
    "cpu": "CPU SCALE: small networks and short training. Where a line names what differs from the paper, the "
    "published figure beside it is of another setting; where the data set differs, it is left out.",
    "full": "",
}


def above(experiment: Experiment, page: Page) -> list[str]:
    """Return the paragraphs above a table."""
    return [text for text in (" ".join(experiment.note.split()), page.everywhere()) if text]


def below(experiment: Experiment, scale: Scale, page: Page) -> list[str]:
    """Return the paragraphs below a table: footnotes, figures and columns, what was run, and with which seeds."""
    numbered = [f"[{number}] paper: {text}" for text, number in page.footnotes.items()]
    everywhere = [f"Published figures: {'; '.join(page.common)}."] if page.common else []
    only = experiment.scales.get(scale, ScaleSpec()).only
    run = " ".join([_run(page.lines), *_origin(page.lines)])
    return [text for text in (*numbered, *everywhere, legend(experiment, page), run, *_not_run(page, only)) if text]


def _run(lines: Sequence[Line]) -> str:
    asked = [line for line in lines if line.cells]
    done, partly = sum(line.runs > 0 for line in asked), sum(0 < line.runs < line.cells for line in asked)
    text = f"Run: {sum(line.runs for line in asked)} of {sum(line.cells for line in asked)} cells of this scale, "
    return text + f"in {done} of {len(asked)} lines" + (f" ({partly} in part)." if partly else ".")


def _origin(lines: Sequence[Line]) -> list[str]:
    """Return which seeds and commits the rows are of."""
    seeds = dict.fromkeys(seed for line in lines for seed in line.seeds)
    commits = dict.fromkeys(commit for line in lines for commit in map(_short, line.commits))
    said = [f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."] if seeds else []
    if commits:
        said.append(f"Trained at commit{'s' * (len(commits) > 1)} {', '.join(commits)}.")
    if len(commits) > 1:
        said.append("Commits may differ in the last digits of training: equal seeds need not agree across them.")
    return said


def _short(commit: str) -> str:
    commit, *dirty = commit.split("-")
    return "-".join([commit[:7], *dirty])


def _not_run(page: Page, only: Mapping[str, Sequence[str]]) -> list[str]:
    """Return which lines of the scale are missing in the table, and how many are none of the scale's."""
    asked, others = [line for line in page.lines if line.cells], [line for line in page.lines if not line.cells]
    shown = set(map(id, page.shown))
    left = [line for line in asked if id(line) not in shown]
    said = [f"Not run ({_count(left)}): {in_short(left, asked)}."] if left else []
    if others:
        has = "; ".join(f"{key} {', '.join(values)}" for key, values in only.items())
        the_only = f" The scale has only {has}." if all(only.values()) else ""
        said.append(f"Not part of this scale: {_count(others)} of the paper.{the_only}")
    return said


def _count(lines: Sequence[Line]) -> str:
    return f"{len(lines)} line{'s' * (len(lines) != 1)}"


def runs_of(line: Line) -> str:
    """Return the number of runs, "1 of 3" where others are missing."""
    return f"{line.runs} of {line.cells}" if 0 < line.runs < line.cells else str(line.runs)
