"""Verify a data set: chunks of images through a cascade, into a ledger, to a summary."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.network import exact_float32
from expressive_losses.errors import UserError
from expressive_losses.verify.base import Problem, Verifier
from expressive_losses.verify.cascade import Cascade, Outcome
from expressive_losses.verify.ledger import Ledger
from expressive_losses.verify.shard import Shard, make_shard
from expressive_losses.verify.summary import summarize, write_summary

DType = Literal["float32", "float64"]


def verify(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float,
    stages: Sequence[Verifier],
    out: Path | str,
    *,
    eps_text: str | None = None,
    dataset: str = "",
    split: str = "",
    first: int | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: DType = "float32",
    budget: float | None = None,
    progress: bool = True,
    shard: tuple[int, int] | None = None,
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
        eps: radius in pixel units.
        stages: from :func:`expressive_losses.verify.cascade.build_stages`.
        out: folder of the results.
        eps_text: the radius as the user wrote it, e.g. "2/255"; kept in the ledger.
        dataset, split: names, kept in the ledger.
        first: only the first so many images.
        batch_size: images at once; ``None`` chooses by stage and device.
        resume: go on with the ledger in ``out``.
        seed: of the attacks.
        device: to compute on.
        dtype: "float64" makes rounding errors negligible, at a price.
        budget: seconds for this call; images not decided by then get no row, count as wrong, and are left to
            ``resume``.
        progress: show a bar.
        shard: (i, n): only the images i, i + n, i + 2n, ...; :func:`expressive_losses.verify.merge.merge` joins
            the ledgers of all n. Rows keep the indices of the whole data set.

    Returns:
        The summary, see :func:`expressive_losses.verify.summary.summarize`.

    Raises:
        UserError: data that does not fit the network, a ledger that does not fit the question, a layer
            without bounds.
    """
    images, labels = images[:first], labels[:first].long()
    check_data(network, images, labels, eps)
    shard = None if shard is None else make_shard(*shard)
    indices = range(len(images)) if shard is None else shard.indices(len(images))
    head = head_of(network, images, labels, eps, eps_text, stages, dataset, split, first, dtype, seed, shard)
    deadline = None if budget is None else time.monotonic() + budget
    cascade = Cascade(stages, batch_size)
    evaluated = evaluation_copy(network, torch.device(device), getattr(torch, dtype))
    with Ledger(Path(out), head, resume) as ledger, computing_in(evaluated.mean.dtype):
        with tqdm(total=len(indices), initial=len(ledger.rows), unit="image", disable=not progress) as bar:
            counts = Counter(row.status.value for row in ledger.rows.values())
            for problem in _problems(evaluated, images, labels, indices, eps, cascade, ledger, seed, deadline):
                for outcomes in cascade(evaluated, problem):
                    _record(ledger, outcomes, counts, bar)
    attacks = [stage.name for stage in stages if stage.kind == "attack"]
    summary = {**summarize(head, ledger.rows.values(), attacks), "skipped": cascade.skipped}
    write_summary(Path(out), summary)
    return summary


def head_of(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float,
    eps_text: str | None,
    stages: Sequence[Verifier],
    dataset: str,
    split: str,
    first: int | None,
    dtype: str,
    seed: int,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Return the head of the ledger: everything that the rows depend on."""
    return {
        "weights_sha256": hash_of_weights(network),
        "data_sha256": hash_of_tensors({"images": images, "labels": labels}),
        "dataset": dataset,
        "split": split,
        "first": first,
        "images": len(images),
        "shard": None if shard is None else list(shard),
        "eps": eps_text or repr(float(eps)),
        "eps_value": float(eps),
        "stages": [stage.spec() for stage in stages],
        "dtype": dtype,
        "seed": seed,
    }


def hash_of_weights(network: BoundedNetwork) -> str:
    """Return the SHA-256 of the state dict: names, types, shapes and values of parameters and buffers."""
    return hash_of_tensors(network.state_dict())


def hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values, independent of order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype.str} {tuple(tensor.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_data(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float) -> None:
    """Refuse data that does not fit the network, before any time is spent.

    Raises:
        UserError: saying what does not fit.
    """
    if not (math.isfinite(eps) and eps >= 0):
        raise UserError(f"eps: expected a radius >= 0 in pixel units, got {eps}")
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"expected labels for all of some images, got {len(labels)} for {len(images)}")
    if tuple(images.shape[1:]) != network.shape:
        raise UserError(f"the network takes images {network.shape}, the data has {tuple(images.shape[1:])}")
    if labels.min() < 0 or labels.max() >= network.classes:
        raise UserError(f"labels: expected 0 to {network.classes - 1}, got {labels.min()} to {labels.max()}")
    if images.dtype != torch.uint8 and not ((images >= 0) & (images <= 1)).all():
        raise UserError("images: expected uint8, or floats in [0, 1] (pixel units, not normalised)")


def evaluation_copy(network: BoundedNetwork, device: torch.device, dtype: torch.dtype) -> BoundedNetwork:
    """Return a copy of the network in eval mode; the caller's keeps its mode, device, dtype and gradients."""
    mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
    # The plain module is copied and bounded anew: auto_LiRPA's graphs cannot be copied once they were used.
    copied = BoundedNetwork(copy.deepcopy(network.model), network.shape, network.classes, mean, std)
    return copied.to(device=device, dtype=dtype).eval()


def _problems(
    evaluated: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    indices: range,
    eps: float,
    cascade: Cascade,
    ledger: Ledger,
    seed: int,
    deadline: float | None,
) -> Iterator[Problem]:
    """Yield the chunks that are not recorded yet.

    A chunk that is recorded in part is repeated whole: a row depends, in its last bits, on the composition of
        its batch.
    """
    device, dtype = evaluated.mean.device, evaluated.mean.dtype
    size = cascade.chunk_size(device)
    for begin in range(0, len(indices), size):
        mine = indices[begin : begin + size]
        if all(index in ledger.rows for index in mine):
            continue
        chunk = images[mine.start : mine.stop : mine.step].to(device)
        x = pixels(chunk, dtype)
        y = labels[mine.start : mine.stop : mine.step].to(device)
        yield Problem.of(evaluated, x, y, eps, mine, seed, deadline)


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute exactly in ``dtype`` inside the context: without TensorFloat-32, and with it as torch's default.

    auto_LiRPA makes some of its tensors of the default type, and fails when the network's is another.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with exact_float32():
            yield
    finally:
        torch.set_default_dtype(default)


def pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images in pixel units from 0 to 1: uint8 is divided by 255, floats are taken as they are."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)


def _record(ledger: Ledger, outcomes: Sequence[Outcome], counts: Counter[str], bar: tqdm) -> None:
    new = [one for one in outcomes if one.index not in ledger.rows and not one.timed_out]
    for outcome in new:
        ledger.append(outcome)
        counts[outcome.status.value] += 1
    ledger.sync()
    bar.set_postfix(counts)
    bar.update(len(new))
