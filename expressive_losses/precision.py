"""In what arithmetic a GPU computes. A CPU always computes in full precision; nothing here has an effect on it.

TensorFloat-32 (NVIDIA GPUs since 2020) takes the factors of a product with 10 bits of mantissa in place of 23 and adds
up in float32. Training stands it, claims do not: whatever is verified or evaluated runs inside :func:`exact_float32`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

#: Of training; see ``docs/performance.md`` for why bfloat16 is not among them.
Precision = Literal["float32", "tf32"]


@contextmanager
def training_precision(precision: Precision) -> Iterator[None]:
    """Compute in ``precision`` inside the context, with the fastest convolutions unless bits are to repeat."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        with _tensor_float32(precision == "tf32"):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TensorFloat-32 off inside the context: 10 bits of mantissa are too few for a claim."""
    with _tensor_float32(False):
        yield


@contextmanager
def _tensor_float32(allowed: bool) -> Iterator[None]:
    """Allow or forbid it in matrix products and convolutions; afterwards both are as they were."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
