"""Training in several processes (torchrun): N of them compute exactly what one would on the whole batch.

Every process knows the whole batch's images and randomness and works on its own rows. What a loss sees (logits and
margins) is put together again, so that every process computes the same loss, of the whole batch; BatchNorm's statistics
and Shi's moments are sums over all processes; each gradient is the sum of the processes' own. It all differs from a
single process by rounding only, and weights, optimiser and metrics are the same everywhere: one process writes, any
number can resume.

What combines the parts of a batch does nothing outside of :func:`working_on`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from expressive_losses.errors import Interrupted, UserError


class Part(NamedTuple):
    """The rows ``start`` to ``stop`` of a batch of ``total``: those of one of ``processes``."""

    start: int
    stop: int
    total: int
    processes: int

    def of(self, whole: Tensor) -> Tensor:
        """Return these rows."""
        return whole[self.start : self.stop]


_part: Part | None = None


def rank() -> int:
    """Return the number of this process; 0 when it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int | None:
    """Return which of its machine's processes, and so which GPU, this is; None where torchrun did not start it."""
    rank = os.environ.get("LOCAL_RANK")
    return None if rank is None else int(rank)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started (NCCL between GPUs, else gloo); alone, do nothing.

    After an error of one process nobody waits for it: NCCL would, for good, and torchrun never see that it failed.

    Raises:
        UserError: another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    # the first process alone evaluates while the others wait: NCCL's own limit of ten minutes would end a large run
    dist.init_process_group(backend, timeout=timedelta(hours=6), device_id=own)
    try:
        yield
    except Interrupted:  # raised by all
        _leave_together()
        raise
    except RuntimeError as error:  # gloo's words come with a long traceback
        if not any(words in str(error).lower() for words in ("connection closed by peer", "connection reset by peer")):
            raise
        raise UserError("another process ended; its own message says why") from None
    _leave_together()


def _leave_together() -> None:
    """Leave when all are here: one that goes while another still works may abort, and torchrun stops the other."""
    dist.barrier()
    dist.destroy_process_group()


def part_of(total: int) -> Part | None:
    """Return this process's share of a batch of ``total`` rows, as even as possible; ``None`` when it is alone."""
    count, number = processes(), rank()
    if count == 1:
        return None
    share, rest = divmod(total, count)
    start = number * share + min(number, rest)
    return Part(start, start + share + (number < rest), total, count)


@contextmanager
def working_on(part: Part | None) -> Iterator[None]:
    """Make the functions below combine what the processes have, inside the context."""
    global _part
    before, _part = _part, part
    try:
        yield
    finally:
        _part = before


def whole_count(rows: int) -> int:
    """Return how many values all processes have together where this one has ``rows`` for its part of the batch."""
    return rows if _part is None else rows // (_part.stop - _part.start) * _part.total


def summed_over_processes(value: Tensor) -> Tensor:
    """Return the sum of all processes' values, without gradient, in place."""
    if _part is not None:
        dist.all_reduce(value)
    return value


class _Gather(Function):
    @staticmethod
    def forward(ctx, rows, part):
        ctx.part = part
        whole = rows.new_zeros(part.total, *rows.shape[1:])
        whole[part.start : part.stop] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return ctx.part.of(gradient), None


def gathered(rows: Tensor | None) -> Tensor | None:
    """Return all processes' rows, (whole batch, ...).

    Its gradient is this process's part: correct where every process computes the same from the whole.
    """
    return rows if _part is None or rows is None else _Gather.apply(rows, _part)


class _Shared(Function):
    @staticmethod
    def forward(ctx, value, processes):
        ctx.processes = processes
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient / ctx.processes, None


def counted_once(value: Tensor) -> Tensor:
    """Return a value of the parameters alone, which every process computes: their gradients are to add up to one."""
    return value if _part is None else _Shared.apply(value, _part.processes)


def add_gradients(gradients: Sequence[Tensor | None]) -> None:
    """Replace each gradient by the sum over all processes, in one message."""
    if _part is not None:
        add_up([gradient for gradient in gradients if gradient is not None])


def add_up(values: Sequence[Tensor]) -> None:
    """Replace each value by the sum over all processes, in one message. Every process has to."""
    if processes() == 1 or not values:
        return
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.all_reduce(flat)
    for value, total in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(total.view_as(value))


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether some process says so. Every process has to ask."""
    if processes() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value)
    return bool(value > 0)


def take_from_first(values: Iterable[Tensor]) -> None:
    """Write the first process's values into those of all others. Every process has to."""
    if processes() > 1:
        for value in values:
            message = value.contiguous()
            dist.broadcast(message, 0)
            value.copy_(message)


def same_as_first(payload: dict[str, Any] | None, device: torch.device) -> dict[str, Any] | None:
    """Return what the first process has, in all of them; tensors and plain values, on the CPU."""
    if processes() == 1:
        return payload
    buffer = io.BytesIO()
    if rank() == 0:
        torch.save(payload, buffer)
    size = torch.tensor(buffer.tell(), device=device)
    dist.broadcast(size, 0)
    content = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if rank() == 0:
        content.copy_(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
    dist.broadcast(content, 0)
    return torch.load(io.BytesIO(content.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
