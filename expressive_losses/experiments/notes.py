"""What stands above and below a table: what all lines have in common, what its columns are, what was run of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expressive_losses.experiments.spec import Column, Experiment, Scale, ScaleSpec
from expressive_losses.experiments.table import Line, Value

#: Percentage points from which on a difference is marked.
MARKED = 1.0
#: Lines that were not run and have no place in the table, from this number on.
_FOLDED = 6
#: Of more of them only the numbers are given.
_LISTED = 40

WARNINGS = {
    "smoke": "SMOKE SCALE: a few images of handwritten digits, a tiny network, a few epochs, whatever a line is named "
    "after. The figures show that the chain runs; they say nothing about the method. Published figures "
    "are of other data and left out.",
    "cpu": "CPU SCALE: small networks and short training. Where a line names what differs from the paper, the "
    "published figure beside it is of another setting; where the data set differs, it is left out.",
    "full": "",
}
_BOUNDS = {"cascade": "the cascade, which ends in branch-and-bound", "ibp": "IBP", "crown-ibp": "CROWN-IBP"}
_STAGES = {"ibp": "IBP", "crown": "CROWN", "crown-ibp": "CROWN-IBP"}


def above(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    """Return the paragraphs above a table."""
    shared = shared_differences(lines)
    which = "" if all(line.in_paper for line in lines if line.runs) else " and is in the paper"
    everywhere = f"In place of the paper's, in every line that was run{which}: {', '.join(shared)}." if shared else ""
    return [text for text in (" ".join(experiment.note.split()), everywhere) if text]


def below(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> list[str]:
    """Return the paragraphs below a table: footnotes, columns, what was run, and with which seeds."""
    numbered = [f"[{number}] paper: {text}" for text, number in footnotes(lines).items()]
    common = "; ".join(_common(lines))
    everywhere = [f"Published figures: {common}."] if common else []
    legend = " ".join([*_of_figures(lines), *_of_columns(experiment)])
    only = experiment.scales.get(scale, ScaleSpec()).only
    return [*numbered, *everywhere, legend, " ".join([_run(lines), *_origin(lines)]), *_not_run(lines, only)]


def shared_differences(lines: Sequence[Line]) -> list[str]:
    """Return what all lines of the paper that were run have in place of its setting, if there is more than one."""
    run = [line.differs for line in lines if line.runs and line.in_paper]
    return [text for text in run[0] if all(text in other for other in run)] if len(run) > 1 else []


def differences(line: Line, shared: Sequence[str]) -> str:
    """Return what a line alone has in place of the paper's setting."""
    if not line.in_paper:
        return "not in the paper"
    return ", ".join(text for text in line.differs if text not in shared)


def footnotes(lines: Sequence[Line]) -> dict[str, int]:
    """Return the footnotes of a table, numbered."""
    common = _common(lines)
    own = dict.fromkeys(footnote(line, common) for line in in_table(lines))
    return {note: number for number, note in enumerate(filter(None, own), 1)}


def footnote(line: Line, common: Sequence[str]) -> str:
    """Return what there is to know of the published figures of a line, beside what is said of all."""
    return "; ".join(note for note in line.notes if note not in common)


def mark(line: Line, lines: Sequence[Line], numbered: Mapping[str, int]) -> str:
    """Return the mark of the footnote of a line, " [1]"."""
    number = numbered.get(footnote(line, _common(lines)))
    return f" [{number}]" if number else ""


def in_table(lines: Sequence[Line]) -> list[Line]:
    """Return the lines that stand in the table: those that were run, and the others where they are few, or all."""
    run = [line for line in lines if line.runs]
    return run if run and len(lines) - len(run) >= _FOLDED else list(lines)


def with_published(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    """Return the columns that have a published figure somewhere."""
    return [name for name in experiment.columns if any(line.values[name].published is not None for line in lines)]


def _common(lines: Sequence[Line]) -> list[str]:
    """Return the notes that all lines with published figures have, if there are several."""
    notes = [line.notes for line in in_table(lines) if any(v.published is not None for v in line.values.values())]
    return [note for note in notes[0] if all(note in other for other in notes)] if len(notes) > 1 else []


def _of_figures(lines: Sequence[Line]) -> list[str]:
    shown = in_table(lines)
    values = [value for line in shown for value in line.values.values()]
    said = ["Accuracies are percent of the images; mean and sample standard deviation (n - 1) over the runs."]
    if any(_in_parentheses(value) for value in values):
        said.append(
            "A published figure in parentheses is of another setting than ours: the last column says what ours has in "
            "its place, above the table stands what all lines have."
        )
    replaced = [text for line in shown for text in line.shown.values() if " (for " in text]
    if replaced:
        said.append(f'"{replaced[0]}": the first was run, in place of the one in parentheses.')
    if any(value.difference is not None for value in values):
        said.append(f"Differences are given where the setting is the paper's; bold from {MARKED:g} on.")
    if any(value.runs == 1 and value.ours is None for value in values):
        said.append("–: one run has no extremes and quartiles.")
    return said


def _in_parentheses(value: Value) -> bool:
    return value.published is not None and value.ours is not None and not value.comparable


def _of_columns(experiment: Experiment) -> list[str]:
    """Return a sentence on each column that is not clear from its name."""
    names: dict[str, list[str]] = {}
    for name, column in experiment.columns.items():
        names.setdefault(_meaning(experiment, column), []).append(name)
    said = [f"{', '.join(some)}: {meaning}" for meaning, some in names.items() if meaning]
    return [f"{'; '.join(said)}."] if said else []


def _meaning(experiment: Experiment, column: Column) -> str:
    if column.stage is not None:
        return f"verified by {_STAGES.get(column.stage, column.stage)} alone"
    path = column.figure.split(".") if isinstance(column.figure, str) else column.figure
    if path[-1] == "adversarial":
        return "still right under PGD" if column.statistic == "mean" else ""
    if path[-1] == "verified" and column.statistic == "mean":
        own = any((entry.verify.get(path[1]) or {}).get("bound") for entry in experiment.entries)
        bound = experiment.verify[path[1]].bound
        return "" if own or column.verification != "bab" else f"proven by {_BOUNDS.get(bound, bound)}"
    return ""


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


def _not_run(lines: Sequence[Line], only: Mapping[str, Sequence[str]]) -> list[str]:
    """Return which lines are missing in the table, in short."""
    shown = {id(line) for line in in_table(lines)}
    left = [line for line in lines if id(line) not in shown]
    asked, others = [line for line in left if line.cells], [line for line in left if not line.cells]
    said = (
        [f"Not run ({_count(asked)}): {_listed(asked) if len(asked) <= _LISTED else _counted(asked)}."] if asked else []
    )
    if others:
        has = "; ".join(f"{key} {', '.join(values)}" for key, values in only.items())
        the_only = f" The scale has only {has}." if all(only.values()) else ""
        said.append(f"Not part of this scale: {_count(others)} of the paper.{the_only}")
    return said


def _count(lines: Sequence[Line]) -> str:
    return f"{len(lines)} line{'s' * (len(lines) != 1)}"


def _listed(lines: Sequence[Line]) -> str:
    """Return lines by all of their labels but the last: "0.1: model_a, model_b; 0.2: model_a"."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        *first, last = line.shown.values()
        groups.setdefault(", ".join(first), []).append(last)
    return "; ".join(f"{key}: {', '.join(names)}" if key else ", ".join(names) for key, names in groups.items())


def _counted(lines: Sequence[Line]) -> str:
    """Return how many lines there are of each value of the first label: "of data mnist 3, cifar10 4"."""
    name = next(iter(lines[0].shown))
    values = [line.shown[name] for line in lines]
    return f"of {name} {', '.join(f'{value} {values.count(value)}' for value in dict.fromkeys(values))}"


def runs_of(line: Line) -> str:
    """Return the number of runs, "1 of 3" where others are missing."""
    return f"{line.runs} of {line.cells}" if 0 < line.runs < line.cells else str(line.runs)
