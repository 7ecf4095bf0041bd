"""The network as it is evaluated, and the images in the chunks that go through the cascade."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork, refuse_disagreement
from expressive_losses.errors import UserError
from expressive_losses.precision import exact_float32
from expressive_losses.verify.base import Problem


def evaluation_copy(
    network: BoundedNetwork, device: torch.device | str, dtype: torch.dtype, fast_chain: bool = True
) -> BoundedNetwork:
    """Return a copy of the network in eval mode; the caller's keeps its mode, device, dtype and gradients.

    Args:
        network, device, dtype: what, where and in which precision.
        fast_chain: see :class:`BoundedNetwork`; without it all bounds are auto_LiRPA's.

    Raises:
        UserError: the network is random also in eval mode, or the fast path computes something else than it.
    """
    mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
    # The plain module is copied and bounded anew: auto_LiRPA's graphs cannot be copied once they were used.
    copied = BoundedNetwork(copy.deepcopy(network.model), network.shape, network.classes, mean, std, fast_chain)
    copied = copied.to(device=torch.device(device), dtype=dtype).eval()
    refuse_disagreement(copied)
    return copied


def refuse_rounded_weights(network: BoundedNetwork, dtype: torch.dtype) -> None:
    """Refuse float64 weights that ``dtype`` cannot hold: rounded, they are another network's.

    Raises:
        UserError: naming the first.
    """
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not torch.equal(value.nan_to_num(), value.to(dtype).to(value).nan_to_num()):
            kinds = [str(kind).removeprefix("torch.") for kind in (value.dtype, dtype)]
            raise UserError(
                f"'{name}' is {kinds[0]} and would be rounded to {kinds[1]}, which is another network: "
                f"take --dtype {kinds[0]} (Settings.dtype), or convert the network yourself if that is the one you mean"
            )


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


def chunks(indices: range, size: int, done: Container[int]) -> Iterator[range]:
    """Yield ``indices`` in chunks of ``size``, without the chunks that are done already.

    A chunk that is done in part is repeated whole: a row depends, in its last bits, on the composition of its batch.
    """
    for begin in range(0, len(indices), size):
        mine = indices[begin : begin + size]
        if not all(index in done for index in mine):
            yield mine


def problems(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float,
    parts: Iterable[range],
    seed: int,
    deadline: float | None,
) -> Iterator[Problem]:
    """Yield the problem of each part of the images, until the deadline."""
    device, dtype = network.mean.device, network.mean.dtype
    for mine in parts:
        rows = slice(mine.start, mine.stop, mine.step)
        x = pixels(images[rows].to(device), dtype)
        problem = Problem.of(network, x, labels[rows].to(device), eps, mine, seed, deadline)
        if problem.is_late():
            return
        yield problem
