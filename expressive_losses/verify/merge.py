"""Join the ledgers of the shards of one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError
from expressive_losses.verify.files import write_whole, writing
from expressive_losses.verify.ledger import FILE_NAME, Ledger, Row, read_ledger, refuse_other, witness_path
from expressive_losses.verify.radius import SUMMARY_NAME, RadiusLedger, summarize_radii
from expressive_losses.verify.shard import Shard, asked_indices
from expressive_losses.verify.summary import attacks_of, summarize, write_summary


def merge(folders: Sequence[Path | str], out: Path | str) -> dict[str, Any]:
    """Write the ledger, the counterexamples and the summary that one unsharded run would have left.

    The rows are in the order of the data set. ``out`` appears whole or, if this dies, without a ledger.

    Args:
        folders: of the shards' ledgers.
        out: folder of the result; must not have a ledger yet.

    Returns:
        The summary, as :func:`expressive_losses.verify.run.verify` returns it.

    Raises:
        UserError: heads that differ in more than the shard, an image with two rows or with none, a row in a shard that
            is not its own, a missing counterexample.
    """
    head, rows, sources = _joined(folders, out, Ledger)
    _copy_witnesses(rows, sources, Path(out))
    _write_ledger(Path(out) / FILE_NAME, head, rows)
    summary = summarize(head, rows, attacks_of(head))
    write_summary(Path(out), summary)
    return summary


def merge_radii(folders: Sequence[Path | str], out: Path | str) -> dict[str, Any]:
    """Join the shards' ``radius.jsonl`` as :func:`merge` joins ledgers.

    Returns:
        The summary, as :func:`expressive_losses.verify.radius.certified_radii` returns it.

    Raises:
        UserError: see :func:`merge`.
    """
    head, rows, _ = _joined(folders, out, RadiusLedger)
    with writing(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    _write_ledger(Path(out) / RadiusLedger.file_name, head, rows)
    summary = summarize_radii(head, rows)
    write_summary(Path(out), summary, SUMMARY_NAME)
    return summary


def _joined(
    folders: Sequence[Path | str], out: Path | str, kind: type[Ledger]
) -> tuple[dict[str, Any], list[Any], dict[int, Path]]:
    """Return the common head, the rows of all images in their order, and which folder each is from."""
    if not folders:
        raise UserError("merge: expected folders with ledgers, got none")
    path = Path(out) / kind.file_name
    if path.exists():
        raise UserError(f"{path} is there already; choose another --out")
    ledgers = {Path(folder): read_ledger(Path(folder), kind) for folder in folders}
    head = _common_head(ledgers, kind.file_name)
    sources = _sources(ledgers, kind.file_name)
    _refuse_gaps(sources, head, [known for known, _ in ledgers.values()])
    return head, [ledgers[sources[index]][1][index] for index in range(head["images"])], sources


def _common_head(ledgers: Mapping[Path, tuple[dict[str, Any], dict[int, Any]]], file_name: str) -> dict[str, Any]:
    """Return the head without its shard, which must be the same everywhere, but for what informs."""
    heads = {folder: {**head, "shard": None} for folder, (head, _) in ledgers.items()}
    first = next(iter(heads.values()))
    for folder, head in heads.items():
        refuse_other(folder / file_name, head, first, advice="Shards of one run differ in nothing but the shard")
    made_with: list[Any] = []
    for head in heads.values():
        made_with += [one for one in head["made_with"] if one not in made_with]
    skipped = {stage: reason for head in heads.values() for stage, reason in head["skipped"].items()}
    return {**first, "made_with": made_with, "skipped": skipped}


def _sources(ledgers: Mapping[Path, tuple[dict[str, Any], dict[int, Any]]], file_name: str) -> dict[int, Path]:
    """Return which folder has the row of each image."""
    sources: dict[int, Path] = {}
    for folder, (head, rows) in ledgers.items():
        asked = asked_indices(head)
        for index in rows:
            if index not in asked:
                raise UserError(f"{folder / file_name}: image {index} is not one that this ledger was asked for")
            if index in sources:
                raise UserError(f"overlap: image {index} is in {sources[index]} and in {folder}; leave one of them out")
            sources[index] = folder
    return sources


def _refuse_gaps(sources: Mapping[int, Path], head: Mapping[str, Any], heads: Sequence[Mapping[str, Any]]) -> None:
    missing = [index for index in range(head["images"]) if index not in sources]
    if not missing:
        return
    unfinished = sorted({str(Shard(*one["shard"])) for one in heads if one["shard"] and _has_any(one, missing)})
    advice = f"finish shard {', '.join(unfinished)} with --resume" if unfinished else "a shard is not among the folders"
    raise UserError(f"gap: {len(missing)} of {head['images']} images have no row, the first is {missing[0]}; {advice}")


def _has_any(head: Mapping[str, Any], indices: Sequence[int]) -> bool:
    asked = asked_indices(head)
    return any(index in asked for index in indices)


def _copy_witnesses(rows: Sequence[Row], sources: Mapping[int, Path], out: Path) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if row.witness is None:
            continue
        source, target = witness_path(sources[row.index], row), witness_path(out, row)
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise UserError(f"{source}: {error.strerror}; the counterexample of image {row.index} is needed") from None


def _write_ledger(path: Path, head: Mapping[str, Any], rows: Sequence[Any]) -> None:
    write_whole(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *map(asdict, rows))))
