"""Read what a verification left, and write its report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.verify.check import refuse_other_question
from expressive_losses.verify.evaluation import evaluation_copy
from expressive_losses.verify.files import write_whole, writing
from expressive_losses.verify.ledger import FILE_NAME, read_ledger
from expressive_losses.verify.radius import RadiusLedger, read_radii
from expressive_losses.verify.report import figures
from expressive_losses.verify.report.compose import compose
from expressive_losses.verify.report.document import Document
from expressive_losses.verify.report.render import html_of, markdown_of

PICTURES = "report"


def write_report(
    folder: Path | str,
    network: BoundedNetwork | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    out: Path | str | None = None,
    *,
    sample: int = 16,
) -> Path:
    """Write ``report.html`` (one file, nothing loaded from elsewhere), ``report.md`` and its pictures ``report/*.png``.

    Args:
        folder: of the ledger; its ``radius.jsonl`` is reported too, if it is there.
        network: that was verified; without it the layers' bounds are left out.
        images, labels: that it was verified on, (N, C, H, W) and (N,); without them the counterexamples are left out.
        out: folder to write to; ``None``: that of the ledger.
        sample: images whose hidden layers are bounded: each takes a pass of CROWN.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: no ledger, or another network or other data than those of the ledger.
    """
    folder, out = Path(folder), Path(folder if out is None else out)
    radii = read_radii(folder) if (folder / RadiusLedger.file_name).exists() else None
    if radii is not None and not (folder / FILE_NAME).exists():
        raise UserError(
            f"{folder} holds certified radii only (radius.json); for a report, verify one radius into it: "
            f"verify.py --model ... --eps ... --out {shlex.quote(str(folder))}"
        )
    head, rows = read_ledger(folder)
    if (network is None) != (images is None) or (images is None) != (labels is None):
        raise UserError("report: give network, images and labels, or none of them")
    if network is not None:
        images, labels = images[: head["first"]].cpu(), labels[: head["first"]].long().cpu()
        refuse_other_question(folder / FILE_NAME, head, network, images, labels)
        network = evaluation_copy(network, torch.device("cpu"), torch.float32)
    document = compose(folder, head, rows, radii, network, images, labels, sample)
    with writing(out):
        _write_pictures(document, out / PICTURES)
    write_whole(out / "report.md", markdown_of(document, PICTURES))
    page = out / "report.html"
    write_whole(page, html_of(document))
    return page


def write_curve(folder: Path | str, summary: Mapping[str, Any]) -> Path:
    """Draw certified accuracy against the radius into ``radius.png``; return its path.

    Args:
        folder: of ``radius.json``.
        summary: of :func:`expressive_losses.verify.radius.certified_radii`.

    Raises:
        UserError: when the file system refuses.
    """
    values = [[point[key] for point in summary["accuracy"]] for key in ("eps", "percent", "low", "high")]
    path = Path(folder) / "radius.png"
    with writing(path):
        path.write_bytes(figures.curve(*values, mark=math.nan))
    return path


def _write_pictures(document: Document, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for section in document.sections:
        for picture in section.pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
