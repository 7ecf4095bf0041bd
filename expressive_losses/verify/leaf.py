"""A sub-problem in which every neuron is split, solved exactly: a linear program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from expressive_losses.bounds.beta_crown import Forms, Neurons


@dataclass(frozen=True)
class Leaf:
    """What the linear program gives.

    Attributes:
        lower: a bound that its multipliers prove, +inf if no input satisfies the splits.
        point: the minimiser in [-1, 1]^D, or ``None``.
    """

    lower: float
    point: Tensor | None


def solve_leaf(neurons: Neurons, forms: Forms, sign: Tensor, seconds: float = 60.0) -> Leaf:
    """Minimise one form over the box and the splits.

    The solver's answer is not trusted: its multipliers are clamped to >= 0 and the bound they prove, by weak duality,
    is computed here in float64, less what rounding can be in the constraints, which the multipliers make large.

    Args:
        neurons: of one image (I = 1).
        forms: of one sub-problem (N = 1).
        sign: +1 or -1 for every unstable neuron, (U,); where one has none nothing is proven.
        seconds: limit of each linear program; when it is reached nothing is proven.
    """
    if (neurons.unstable[0] & (sign == 0)).any():
        return Leaf(-np.inf, None)
    rounding = neurons.rounding[0][sign != 0].double().cpu().numpy()
    matrix, offset, cost, constant = _linear(neurons, forms, sign)
    if not all(np.isfinite(part).all() for part in (matrix, offset, cost, constant)):
        return Leaf(-np.inf, None)  # overflow or NaN weights prove nothing
    if len(matrix) == 0:  # no unstable neuron: the form is affine over the whole box
        lower = _dual_bound(cost, constant, matrix, offset, np.zeros(0), rounding)
        return Leaf(lower, torch.from_numpy(-np.sign(cost)).to(neurons.bias))
    bounds, options = (-1.0, 1.0), {"time_limit": seconds}
    found = linprog(cost, A_ub=matrix, b_ub=-offset, bounds=bounds, method="highs", options=options)
    if found.status == 2:
        return Leaf(_infeasibility(matrix, offset, rounding, options), None)
    if found.status != 0:
        return Leaf(-np.inf, None)
    multipliers = np.maximum(-found.ineqlin.marginals, 0.0)
    lower = _dual_bound(cost, constant, matrix, offset, multipliers, rounding)
    return Leaf(lower, torch.from_numpy(np.clip(found.x, -1.0, 1.0)).to(neurons.bias))


def _linear(neurons: Neurons, forms: Forms, sign: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return (M, q) of the constraints M u + q <= 0, and (g, c) of the form, with every ReLU replaced by its line."""
    g, b, earlier = (t[0].double().cpu().numpy() for t in (neurons.inputs, neurons.bias, neurons.earlier))
    signs = sign.double().cpu().numpy()
    active = (signs > 0)[:, None]
    g, b = g.copy(), b.copy()
    for begin, end in neurons.spans():
        g[begin:end] += earlier[begin:end, :begin] @ (active[:begin] * g[:begin])
        b[begin:end] += earlier[begin:end, :begin] @ (active[:begin, 0] * b[:begin])
    a = forms.neurons[0, 0].double().cpu().numpy() * active[:, 0]
    cost = forms.inputs[0, 0].double().cpu().numpy() + a @ g
    constant = float(forms.constant[0, 0]) + float(a @ b)
    split = signs != 0
    return -signs[split, None] * g[split], -signs[split] * b[split], cost, constant


def _dual_bound(
    cost: np.ndarray,
    constant: float,
    matrix: np.ndarray,
    offset: np.ndarray,
    multipliers: np.ndarray,
    rounding: np.ndarray,
) -> float:
    """Return min over [-1, 1]^D of g . u + c + lambda . (M u + q), less lambda . the rounding in M u + q."""
    return float(constant + multipliers @ (offset - rounding) - np.abs(cost + multipliers @ matrix).sum())


def _infeasibility(matrix: np.ndarray, offset: np.ndarray, rounding: np.ndarray, options: dict) -> float:
    """Return +inf where multipliers with lambda . (M u + q) > 0 on the whole box show that no input is left.

    They are the solution of: minimise t subject to M u + q <= t.
    """
    wide = np.concatenate([matrix, -np.ones((len(matrix), 1))], 1)
    size = matrix.shape[1]
    bounds = [(-1.0, 1.0)] * size + [(None, None)]
    cost = np.zeros(size + 1)
    cost[-1] = 1.0
    found = linprog(cost, A_ub=wide, b_ub=-offset, bounds=bounds, method="highs", options=options)
    if found.status != 0:
        return -np.inf
    multipliers = np.maximum(-found.ineqlin.marginals, 0.0)
    proof = _dual_bound(np.zeros(size), 0.0, matrix, offset, multipliers, rounding)
    return np.inf if proof > 1e-9 * max(1.0, float(np.abs(offset).max())) else -np.inf
