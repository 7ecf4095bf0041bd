"""The lines of a page, and what depends on all of them: worked out once, for the table and what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from expressive_losses.experiments.table import Line

#: Lines that were not run and have no place in the table, from this number on.
_FOLDED = 6


class Page:
    """The lines of a page, and what depends on all of them.

    Args:
        lines: all, whether they were run or not.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    @cached_property
    def run(self) -> list[Line]:
        """The lines of which something was run."""
        return [line for line in self.lines if line.runs]

    @cached_property
    def shown(self) -> list[Line]:
        """The lines in the table: those that were run, and the others where they are few, or all."""
        return self.run if self.run and len(self.lines) - len(self.run) >= _FOLDED else list(self.lines)

    @cached_property
    def of_figures(self) -> list[Line]:
        """The lines that say how figures are made: those that were run, or else all."""
        return self.run or list(self.lines)

    @cached_property
    def shared(self) -> list[str]:
        """What all lines of the paper that were run have in place of its setting, if there is more than one."""
        return _in_all([line.differs for line in self.run if line.in_paper])

    @cached_property
    def common(self) -> list[str]:
        """The notes on published figures that all lines with some have, if there are several."""
        return _in_all(
            [line.notes for line in self.shown if any(v.published is not None for v in line.values.values())]
        )

    @cached_property
    def footnotes(self) -> dict[str, int]:
        """The footnotes, numbered."""
        own = dict.fromkeys(filter(None, map(self._footnote, self.shown)))
        return {note: number for number, note in enumerate(own, 1)}

    def mark(self, line: Line) -> str:
        """Return the mark of the footnote of a line, " [1]"."""
        number = self.footnotes.get(self._footnote(line))
        return f" [{number}]" if number else ""

    def differences(self, line: Line) -> str:
        """Return what a line that was run has in place of the paper's setting, beside what all have."""
        if not line.runs:
            return ""
        if not line.in_paper:
            return "not in the paper"
        return ", ".join(text for text in line.differs if text not in self.shared)

    def everywhere(self) -> str:
        """Return a sentence on what all lines have in place of the paper's setting; nothing where that is nothing."""
        which = "" if all(line.in_paper for line in self.run) else " and is in the paper"
        said = f"In place of the paper's, in every line that was run{which}: {', '.join(self.shared)}."
        return said if self.shared else ""

    def _footnote(self, line: Line) -> str:
        """Return what there is to know of the published figures of a line, beside what is said of all."""
        return "; ".join(note for note in line.notes if note not in self.common)


def _in_all(texts: Sequence[Sequence[str]]) -> list[str]:
    """Return what is in each of several; nothing where there is only one."""
    return [text for text in texts[0] if all(text in other for other in texts)] if len(texts) > 1 else []
