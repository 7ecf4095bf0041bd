"""A CUDA graph for the CPU: records the operations of a piece of work, does them again on the same memory.

Like a graph it repeats kernels, not python: a number that an operation was given on the host, or a branch that python
took, is repeated as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expressive_losses.capture import CannotCapture

#: What a GPU cannot do without the host.
READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select")


class Tape(TorchDispatchMode):
    """Operations with their arguments and results, which stay where they are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Callable[..., Any], tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READING:
            raise CannotCapture(f"{name} reads a value")
        result = func(*args, **(kwargs or {}))
        given = {memory(tensor) for tensor in tensors((args, kwargs))}
        new = [tensor if memory(tensor) not in given else None for tensor in tensors(result)]  # views are no results
        self._done.append((func, args, kwargs or {}, new))
        return result

    def repeat(self) -> None:
        """Do every operation again, on what its arguments are now."""
        with torch.no_grad():
            for func, args, kwargs, into in self._done:
                for target, value in zip(into, tensors(func(*args, **kwargs)), strict=True):
                    if target is not None:
                        target.copy_(value)


class TapeRecorder:
    """Records tapes."""

    def __init__(self) -> None:
        self.recorded = self.prepared = 0

    def prepare(self, work):
        self.prepared += 1
        return work()

    def record(self, work):
        self.recorded += 1
        tape = Tape()
        with tape:
            terms = work()
        return terms, tape.repeat


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
