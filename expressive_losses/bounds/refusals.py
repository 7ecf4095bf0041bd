"""What auto_LiRPA computes, but not as bounds: known by name, or found by comparing with points of the boxes."""

from __future__ import annotations

import torch
from packaging.version import Version
from torch import Tensor

from expressive_losses.bounds import compat
from expressive_losses.errors import NoBounds, UnsupportedNetwork

#: What release 0.3 relaxes by lines that cross the function, or bounds by intervals as if all numbers were positive.
_WRONG = {"BoundLog": "log", "BoundSqrt": "sqrt", "BoundReciprocal": "1 / x", "BoundDiv": "x / y", "BoundTan": "tan"}
#: What it relaxes by lines between those of a table, which cross the function by up to 1e-5.
_WRONG |= {"BoundSin": "sin", "BoundCos": "cos"}
#: Points of each box that the first bounds of a method are compared with.
_POINTS = 32


def refuse_wrong_relaxations(nodes) -> None:
    """Refuse operations whose bounds are none, at single points right all the same (found by sampling).

    A leaky ReLU that is not increasing, or steeper below 0 than above, is neither bounded by its values at the ends of
    an interval nor above a line of slope 1. Of powers below 0 an interval has its ends in the wrong order.

    Raises:
        UnsupportedNetwork: naming the first.
    """
    for node in nodes:
        kind = type(node).__name__
        if kind == "BoundLeakyRelu" and not 0 <= (slope := node.attr["alpha"]) <= 1:
            raise UnsupportedNetwork(
                f"auto_LiRPA cannot bound a leaky ReLU with a slope of {slope:g}: expected one from 0 to 1"
            )
        if compat.lirpa_version() < Version("0.4") and (wrong := _wrong_in_0_3(node)):
            raise UnsupportedNetwork(f"auto_LiRPA 0.3 gives wrong bounds of {wrong} (node {node.name})")


def _wrong_in_0_3(node) -> str:
    """Return what a node does that release 0.3 bounds wrongly; "" if it is right. Of constants all of it is right."""
    kind = type(node).__name__
    if kind not in (*_WRONG, "BoundPow") or not _depends_on_input(node):
        return ""
    if kind == "BoundPow":
        constant = node.inputs[1]
        exponent = constant.buffer if type(constant).__name__ == "BoundBuffers" else getattr(constant, "value", None)
        return "powers below 0" if exponent is None or (exponent < 0).any() else ""
    if kind == "BoundDiv" and not _depends_on_input(node.inputs[1]):
        # what is divided by a root is taken for layer normalisation
        return "x / sqrt(y)" if type(node.inputs[1]).__name__ == "BoundSqrt" else ""
    return _WRONG[kind]


def has_arithmetic_with_constants(bounded) -> bool:
    """Return whether a constant is added to a layer, or the like.

    In patches mode auto_LiRPA 0.3 then lets a padded convolution after it see the constant in the padding too: CROWN's
    values are no bounds.
    """
    arithmetic = ("BoundAdd", "BoundSub", "BoundMul", "BoundDiv")
    return any(
        type(node).__name__ in arithmetic and not all(map(_depends_on_input, node.inputs))
        for node in bounded._modules.values()
    )


def _depends_on_input(node) -> bool:
    """Return whether a node's value does; parameters, buffers and what is made of them alone do not."""
    pending, seen = [node], set()
    while pending:
        one = pending.pop()
        if type(one).__name__ == "BoundInput":
            return True
        if one.name not in seen:
            seen.add(one.name)
            pending += one.inputs
    return False


def sampled_points(lower: Tensor, upper: Tensor) -> Tensor:
    """Return points of boxes (B, *shape), half of them inside and half corners, (S, B, *shape); the same every time."""
    shares = torch.rand(_POINTS, *lower.shape, generator=torch.Generator().manual_seed(0))
    shares = torch.cat([shares[::2], shares[1::2].round()]).to(lower)
    return lower + shares * (upper - lower)


def refuse_outside(method: str, values: Tensor, lower: Tensor, upper: Tensor, computed_from: Tensor) -> None:
    """Refuse bounds that a value of their box lies outside of by more than rounding.

    That none does proves nothing; but what is relaxed wrongly can be right at single points, and shows here.

    Args:
        method: for the message.
        values: at points of the boxes, (S, B, ...).
        lower, upper: (B, ...).
        computed_from: what the values are differences of, or the values; rounding is relative to the largest.

    Raises:
        NoBounds: saying by how much.
    """
    excess = torch.maximum(lower - values, values - upper).max()
    if excess > 1e-3 * (1 + values.abs().max()) + 1e-5 * computed_from.abs().max():
        raise NoBounds(
            f"auto_LiRPA's {method} bounds of this network are none: a point of a box is {float(excess):.2g} outside; "
            "a layer is converted wrongly, or rounding errors reach a thousandth of the largest value of a layer"
        )
