"""Verify a data set: chunks of images through a cascade, into a ledger, to a summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Radius
from expressive_losses.environment import software_and_device
from expressive_losses.errors import UserError
from expressive_losses.verify.base import Verifier
from expressive_losses.verify.cascade import Cascade, Outcome
from expressive_losses.verify.evaluation import (
    chunks,
    computing_in,
    evaluation_copy,
    problems,
    refuse_rounded_weights,
)
from expressive_losses.verify.head import head_of
from expressive_losses.verify.ledger import Ledger
from expressive_losses.verify.settings import Settings
from expressive_losses.verify.shard import asked_indices
from expressive_losses.verify.summary import attacks_of, summarize, write_summary

DEFAULTS = Settings()


def verify(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float | Radius,
    stages: Sequence[Verifier],
    out: Path | str,
    settings: Settings = DEFAULTS,
) -> dict[str, Any]:
    """Decide for each image whether its class can change within the l_inf ball of radius ``eps``.

    Writes ``ledger.jsonl``, ``witnesses/`` and ``summary.json`` to ``out``. The network is copied, so the
    caller's keeps its mode, device, dtype and gradients. With the same batch size a resumed run gives the
    rows of an uninterrupted one, but for the seconds: the batches are composed alike, and each image has its
    own noise.

    Args:
        network: to verify; evaluated in eval mode.
        images: (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        labels: (N,) integers.
        eps: radius in pixel units; a :class:`Radius` keeps its text, e.g. "2/255", in the ledger.
        stages: from :func:`expressive_losses.verify.cascade.build_stages`; the first is "clean".
        out: folder of the results.
        settings: everything else.

    Returns:
        The summary, see :func:`expressive_losses.verify.summary.summarize`.

    Raises:
        UserError: data that does not fit the network, a ledger that does not fit the question, a layer
            without bounds, weights that the precision of the run would round.
    """
    images, labels = images[: settings.first], labels[: settings.first].long()
    check_data(network, images, labels, eps)
    if not stages or stages[0].kind != "clean":
        raise UserError("verify: the first stage must be 'clean', which natural accuracy is from; see build_stages")
    refuse_rounded_weights(network, getattr(torch, settings.dtype))
    head = head_of(network, images, labels, eps, stages, settings)
    indices = asked_indices(head)
    deadline = None if settings.budget is None else time.monotonic() + settings.budget
    cascade = Cascade(stages, settings.batch_size)
    evaluated = evaluation_copy(network, settings.device, getattr(torch, settings.dtype))
    made_with = software_and_device(settings.device)
    with Ledger(Path(out), head, settings.resume, made_with) as ledger, computing_in(evaluated.mean.dtype):
        done = ledger.rows
        parts = chunks(indices, cascade.chunk_size(evaluated.mean.device), done)
        hidden = None if settings.progress else True  # None: where nobody looks, too
        with tqdm(total=len(indices), initial=len(done), unit="image", disable=hidden) as bar:
            counts = Counter(row.status.value for row in done.values())
            for problem in problems(evaluated, images, labels, eps, parts, settings.seed, deadline):
                for outcomes in cascade(evaluated, problem):
                    _record(ledger, outcomes, counts, bar)
                ledger.note_skipped(what_was_skipped(cascade, evaluated))
    summary = summarize(ledger.head, ledger.rows.values(), attacks_of(head))
    write_summary(Path(out), summary)
    return summary


def check_data(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float) -> None:
    """Refuse data that does not fit the network, before any time is spent.

    Raises:
        UserError: saying what does not fit.
    """
    if not 0 <= eps <= 1:  # nor a NaN
        raise UserError(f"eps: expected a radius in pixel units, from 0 to 1, got {float(eps)}")
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"expected labels for all of some images, got {len(labels)} for {len(images)}")
    if tuple(images.shape[1:]) != network.shape:
        raise UserError(f"the network takes images {network.shape}, the data has {tuple(images.shape[1:])}")
    if labels.min() < 0 or labels.max() >= network.classes:
        raise UserError(f"labels: expected 0 to {network.classes - 1}, got {labels.min()} to {labels.max()}")
    if images.dtype != torch.uint8 and not ((images >= 0) & (images <= 1)).all():
        raise UserError("images: expected uint8, or floats in [0, 1] (pixel units, not normalised)")


def what_was_skipped(cascade: Cascade, network: BoundedNetwork) -> dict[str, str]:
    """Return why which stages could not handle the network, and why its rounding errors could not be bounded."""
    unknown = network.rounding().unknown
    return cascade.skipped | ({} if unknown is None else {"rounding": f"the tolerance alone stands for it: {unknown}"})


def _record(ledger: Ledger, outcomes: Sequence[Outcome], counts: Counter[str], bar: tqdm) -> None:
    new = [one for one in outcomes if one.index not in ledger.rows and not one.timed_out]
    for outcome in new:
        ledger.append(outcome)
        counts[outcome.status.value] += 1
    ledger.sync()
    bar.set_postfix(counts, refresh=False)
    bar.update(len(new))
