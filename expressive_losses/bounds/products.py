"""Matrix products of float32 on a CPU, by the faster of the two libraries that torch brings.

torch multiplies matrices with MKL, which leaves half of an AMD processor's AVX-512 unused, and convolves with oneDNN,
which does not. On such a processor these products take half of the time by oneDNN; values differ by rounding only.
Whose processor it is torch does not say: all with AVX-512 take it. With ``torch.backends.mkldnn`` off, torch does all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

#: oneDNN's linear layer, as torch's own compiler calls it; ``None`` in a torch without it.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_AVAILABLE = (
    ONEDNN_LINEAR is not None
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
#: Multiply-adds of a product below which the two do not differ.
_FEW = 2**20


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` of two matrices, (n, k) and (k, m), or of two stacks of as many. Not differentiable."""
    if a.ndim == 3 and len(a) and _worth_it(a[0], b[0].t()):
        return torch.stack([product(one, other) for one, other in zip(a, b, strict=True)])
    return _onednn(a, b.mT) if _worth_it(a, b.mT) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x, weight, bias)``, with gradients."""
    return _Linear.apply(x, weight, bias) if _worth_it(x, weight) else F.linear(x, weight, bias)


def usable(x: Tensor) -> bool:
    """Return whether oneDNN could multiply such numbers here."""
    return _AVAILABLE and x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.enabled


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN can do x (n, k) by weight (m, k), and may be faster."""
    return (
        usable(x)
        and x.ndim == weight.ndim == 2
        and weight.dtype == x.dtype
        and min(*x.shape, len(weight)) > 1  # of vectors MKL is faster
        and x.numel() * len(weight) >= _FEW
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return ONEDNN_LINEAR(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Return the matrix without gaps in memory: of a part of a larger one oneDNN would take each number by itself."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(Function):
    """See :func:`linear`."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_y):
        x, weight = ctx.saved_tensors
        to_x = product(to_y, weight) if ctx.needs_input_grad[0] else None
        to_weight = product(to_y.t(), x) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, to_y.sum(0) if ctx.needs_input_grad[2] else None
