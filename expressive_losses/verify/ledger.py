"""The ledger: one JSON line an image, written at once, so that nothing is lost when a run dies."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic_core import to_json
from torch import Tensor

from expressive_losses.config import Radius
from expressive_losses.errors import UserError
from expressive_losses.verify.base import Status
from expressive_losses.verify.cascade import Outcome
from expressive_losses.verify.files import writing

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock there
    fcntl = None

FORMAT = "expressive-losses-ledger-1"
FILE_NAME = "ledger.jsonl"
WITNESSES = "witnesses"
#: Keys of the head that inform: what was run on which machine, and which stages could not handle the network. They are
#: no part of the question, so that a run may be resumed elsewhere. Lines with a "note" add to them.
INFORMATIVE = ("made_with", "skipped")


def witness_name(index: int) -> str:
    """Return where the counterexample of an image is, relative to the ledger's folder."""
    return f"{WITNESSES}/{index:06d}.npy"


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        index: in the data set.
        label, prediction: classes; the prediction is of the clean image.
        status: one of :class:`Status`.
        decided_by: name of the stage, ``None`` where unknown.
        margin: worst lower bound on f_y - f_j over the box, ``None`` where no bound was computed.
        seconds: the image's share of the time of its batches.
        witness: file of the counterexample, relative to the ledger's folder, or ``None``.
    """

    index: int
    label: int
    prediction: int | None
    status: Status
    decided_by: str | None
    margin: float | None
    seconds: float
    witness: str | None

    @classmethod
    def of(cls, outcome: Outcome) -> Row:
        """Return the row of an outcome."""
        witness = None if outcome.witness is None else witness_name(outcome.index)
        return cls(
            index=outcome.index,
            label=outcome.label,
            prediction=outcome.prediction,
            status=outcome.status,
            decided_by=outcome.decided_by,
            margin=outcome.margin if math.isfinite(outcome.margin) else None,
            seconds=round(outcome.seconds, 6),
            witness=witness,
        )

    @classmethod
    def parse(cls, line: bytes) -> Row:
        """Read a line.

        Raises:
            ValueError: when it is not a row.
        """
        values = json.loads(line)
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
            raise ValueError("it does not have the keys of a row")
        if type(values["index"]) is not int or values["index"] < 0:
            raise ValueError(f"index {values['index']!r}")
        if not isinstance(values["margin"], float | int | None) or type(values["label"]) is not int:
            raise ValueError(f"label {values['label']!r}, margin {values['margin']!r}")
        return cls(**{**values, "status": Status(values["status"])})


class Ledger:
    """The open ledger of a folder; a context manager, for one process at a time.

    Args:
        folder: made if it is not there.
        head: what was asked, as :func:`expressive_losses.verify.head.head_of` makes it.
        resume: go on with a ledger that is there.
        made_with: software and device of this process; noted when it is not among those of the ledger.

    Attributes:
        head: as given, with "made_with" (a list of all that wrote to it) and "skipped" (by stage, why).
        rows: by index, those read and those appended.

    Raises:
        UserError: a ledger is there but ``resume`` is not set, it answers another question, it is corrupt, or
            another process writes it.
    """

    file_name: ClassVar[str] = FILE_NAME
    format: ClassVar[str] = FORMAT
    row_type: ClassVar[type] = Row

    def __init__(
        self, folder: Path, head: Mapping[str, Any], resume: bool = False, made_with: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / self.file_name
        with writing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        self._synced = -math.inf
        try:
            self._lock()
            made = [] if made_with is None else [dict(made_with)]
            asked = {"format": self.format, **head, "made_with": made, "skipped": {}}
            with writing(self.path):
                self.head, self.rows = self._restore(_plain(asked), resume)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self.sync(every=0.0)
        finally:
            self._close()

    def _close(self) -> None:
        with suppress(OSError):  # what a full disk has refused once is tried again, and was reported then
            self._file.close()

    def append(self, outcome: Outcome) -> Row:
        """Write an outcome: first its counterexample, then its row."""
        row = Row.of(outcome)
        if row.index not in self.rows and row.witness is not None:
            self._save(self.folder / row.witness, outcome.witness)
        self.append_row(row)
        return row

    def append_row(self, row: Any) -> None:
        """Write a row; :meth:`sync` gives it to the operating system.

        Raises:
            UserError: when its image has one.
        """
        if row.index in self.rows:
            raise UserError(f"{self.path}: image {row.index} is there already")
        self._write(to_json(vars(row), inf_nan_mode="null"))  # a seventh of the time of json.dumps
        self.rows[row.index] = row

    def note_skipped(self, skipped: Mapping[str, str]) -> None:
        """Write, once, which stages could not handle the network, and why."""
        new = {stage: reason for stage, reason in skipped.items() if stage not in self.head["skipped"]}
        if new:
            self._note(self.head, "skipped", new)

    def _note(self, head: dict[str, Any], key: str, value: Any) -> None:
        self._write(json.dumps({"note": key, "value": value}).encode())
        _add_note(head, {"note": key, "value": value})

    def sync(self, every: float = 1.0) -> None:
        """Give what was written to the operating system, and force it to the disk unless that was done less than
        ``every`` seconds ago.

        Call it after each batch: then only a crash of the machine can lose rows, those of the last second. Forcing each
        small batch would take as long as its bounds.
        """
        with writing(self.path):
            self._file.flush()
            if time.monotonic() - self._synced >= every:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = f"{self.path} is being written by another process"
            raise UserError(f"{problem}; wait for it, or choose another --out") from None

    def _restore(self, head: dict[str, Any], resume: bool) -> tuple[dict[str, Any], dict[int, Row]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:  # nothing yet, or a run that died while it wrote the first line
            self._file.truncate(0)
            self._write(json.dumps(head, allow_nan=False).encode())
            self._file.flush()
            return head, {}
        if not resume:
            raise UserError(f"{self.path} is there already: --resume, or choose another --out")
        known, rows, good = _parse(self.path, whole, type(self))
        refuse_other(self.path, known, head)
        if good < len(content):
            self._file.truncate(good)
        for one in head["made_with"]:
            if one not in known["made_with"]:
                self._note(known, "made_with", one)
        return known, rows

    def _write(self, line: bytes) -> None:
        with writing(self.path):
            self._file.write(line + b"\n")

    def _save(self, path: Path, witness: Tensor) -> None:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            np.save(path, witness.numpy())


def read_ledger(folder: Path, kind: type[Ledger] = Ledger) -> tuple[dict[str, Any], dict[int, Any]]:
    """Return the head and the rows, by index, of a folder's ledger, without a change to it.

    A torn last line, left by a run that died, is ignored.

    Raises:
        UserError: there is none, or it is corrupt.
    """
    path = Path(folder) / kind.file_name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a folder that verify.py wrote") from None
    head, rows, _ = _parse(path, content[: content.rfind(b"\n") + 1], kind)
    return head, rows


def witness_path(folder: Path, row: Row) -> Path:
    """Return the file of a row's counterexample.

    Raises:
        UserError: the row has none, or names a file that is not its own.
    """
    if row.witness != witness_name(row.index):
        raise UserError(f"{folder}: image {row.index} names '{row.witness}' as its counterexample, not its own file")
    return Path(folder) / row.witness


def load_witness(folder: Path, row: Row) -> np.ndarray:
    """Return the counterexample of a row, (*image), pixel units. Never loads anything but plain numbers.

    Raises:
        UserError: it is missing, or not an array.
    """
    path = witness_path(folder, row)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "not an array of numbers"
        raise UserError(f"{path}: the counterexample of image {row.index} cannot be read: {reason}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UserError(f"{path}: expected an array of floats")
    return array


def _parse(path: Path, content: bytes, kind: type[Ledger]) -> tuple[dict[str, Any], dict[int, Any], int]:
    """Return head, rows, and how many bytes are good: a last line that is no row is dropped."""
    lines = content.splitlines(keepends=True)
    head = _parse_head(path, lines[0] if lines else b"", kind.format)
    rows: dict[int, Any] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            if _add_note(head, json.loads(line)):
                continue
            row = kind.row_type.parse(line)
        except (ValueError, TypeError) as error:
            if number == len(lines):
                return head, rows, len(content) - len(line)
            raise UserError(f"{path}, line {number}: not a row of a ledger: {error}") from None
        if row.index in rows:
            raise UserError(f"{path}, line {number}: image {row.index} has a second row")
        rows[row.index] = row
    return head, rows, len(content)


def _parse_head(path: Path, line: bytes, format: str) -> dict[str, Any]:
    try:
        head = json.loads(line)
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get("format") != format:
        raise UserError(f"{path}: the first line is not the head of a ledger of format {format}")
    if not _says_its_radius(head):
        raise UserError(
            f"{path}: its head says eps {head.get('eps')} and means {head.get('eps_value')}: it was changed by hand"
        )
    return {**head, "made_with": list(head.get("made_with") or []), "skipped": dict(head.get("skipped") or {})}


def _says_its_radius(head: dict[str, Any]) -> bool:
    """Return whether the text of the radius, which people read, is the number that was verified."""
    try:
        return "eps" not in head or float(Radius.recorded(head["eps"])) == head["eps_value"]
    except (ValueError, KeyError):
        return False


def _add_note(head: dict[str, Any], line: Any) -> bool:
    """Add a line to the informative part of the head, in place; return whether it is a note.

    Raises:
        ValueError: for a note of an unknown kind.
    """
    if not isinstance(line, dict) or "note" not in line:
        return False
    if line["note"] == "made_with":
        head["made_with"].append(line["value"])
    elif line["note"] == "skipped":
        head["skipped"].update(line["value"])
    else:
        raise ValueError(f"note {line['note']!r}")
    return True


def _plain(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head as it comes back from JSON."""
    return json.loads(json.dumps(dict(head), allow_nan=False))


def refuse_other(
    path: Path,
    known: Mapping[str, Any],
    asked: Mapping[str, Any],
    advice: str = "Repeat its settings, or choose another --out",
) -> None:
    """Refuse a head that is not the one asked for, naming what differs; :data:`INFORMATIVE` keys may, and so may the
    words for the same radius (0.1, 1e-1).

    Raises:
        UserError: the first three differences.
    """
    there, here = (dict(_flat({key: one[key] for key in one if key not in INFORMATIVE})) for one in (known, asked))
    same_radius = "eps_value" in there and there["eps_value"] == here.get("eps_value")
    words = {"eps"} if same_radius else set()
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key) and key not in words]
    if differing:
        each = [f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in differing]
        what = "; ".join(each[:3])
        raise UserError(f"{path} answers another question: {what}. {advice}")


def _flat(value: Any, prefix: str = ""):
    """Yield ("stages.1.steps", 40) and so on for the leaves of nested mappings and lists."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
