"""What a report consists of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """One figure that matters.

    Attributes:
        title: what it is.
        value: the figure, e.g. "97.10 %".
        note: its interval and counts.
        color: of its bar, e.g. "#1b7f5c".
        percent, low, high: for the bar, from 0 to 100.
    """

    title: str
    value: str
    note: str
    color: str
    percent: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """Text in rows; all columns but the first are numbers, unless ``textual`` says otherwise."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    textual: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    Attributes:
        name: of the file, without its ending.
        caption: what it shows, also for those who do not see it.
        png: the file.
    """

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading with what follows it: text, pictures, tables, in this order."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    subtitle: str
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = field(default_factory=list)
