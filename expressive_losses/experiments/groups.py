"""Lines of a table in few words: by the labels that tell them from the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from expressive_losses.experiments.table import Line

#: Labels whose values say by themselves what they are.
_BARE = ("data", "method", "network", "recipe")
#: Of more parts than this only numbers are given.
_LISTED = 12

#: The values that some labels have; every line with one of them for each label is meant.
_Part = Mapping[str, tuple[str, ...]]


def said(name: str, value: str) -> str:
    """Return a label in words: "eps 0.1"; a data set, method, network or recipe by its name alone."""
    return value if name in _BARE else f"{name} {value}"


def in_short(lines: Sequence[Line], among: Sequence[Line]) -> str:
    """Return lines by what tells them from the others: "eps 0.2, 0.3: adv_ibp; crown_ibp".

    Where a label is not named, all of the values that it has among the lines are meant; of many parts only the numbers
    of lines are given.
    """
    whole = _shortened(_hull(lines), among)
    if _meant(whole, among) == len(lines) and _has_all(whole, lines):
        parts = [whole]
    else:
        parts = [_shortened(part, among) for part in _joined([_shortened(_hull([line]), among) for line in lines])]
    if len(parts) > _LISTED:
        return _counted(lines)
    shown = {(name, value): line.shown[name] for line in lines for name, value in line.labels.items()}
    return "; ".join(_in_words(part, shown) for part in parts)


def _hull(lines: Sequence[Line]) -> _Part:
    """Return the smallest part that has all of some lines."""
    return {name: tuple(dict.fromkeys(line.labels[name] for line in lines)) for name in lines[0].labels}


def _has_all(part: _Part, lines: Sequence[Line]) -> bool:
    """Return whether there is a line for all values of a part together: if not, it reads as more than it means."""
    return len({tuple(line.labels[name] for name in part) for line in lines}) == math.prod(map(len, part.values()))


def _shortened(part: _Part, among: Sequence[Line]) -> _Part:
    """Return a part without the labels that no line needs to be told by, the last ones first."""
    meant = _meant(part, among)
    for name in reversed(list(part)):
        shorter = {key: values for key, values in part.items() if key != name}
        if shorter and _meant(shorter, among) == meant:
            part = shorter
    return part


def _meant(part: _Part, among: Sequence[Line]) -> int:
    """Return how many lines are of a part."""
    return sum(all(line.labels[name] in values for name, values in part.items()) for line in among)


def _joined(parts: Sequence[_Part]) -> list[_Part]:
    """Return the parts, those made one that differ in one label only."""
    names = dict.fromkeys(name for part in parts for name in part)
    for name in reversed(names):
        groups: dict[tuple, _Part] = {}
        for part in parts:
            rest = (name in part, *((key, values) for key, values in part.items() if key != name))
            former = groups.get(rest, {})
            groups[rest] = {**part, name: (*former.get(name, ()), *part[name])} if name in part else part
        parts = list(groups.values())
    return list(parts)


def _in_words(part: _Part, shown: Mapping[tuple[str, str], str]) -> str:
    return ": ".join(said(name, ", ".join(shown[name, value] for value in values)) for name, values in part.items())


def _counted(lines: Sequence[Line]) -> str:
    """Return how many lines there are of each value of the first label: "of data mnist 3, cifar10 4"."""
    name = next(iter(lines[0].shown))
    values = [line.shown[name] for line in lines]
    return f"of {name} {', '.join(f'{value} {values.count(value)}' for value in dict.fromkeys(values))}"
