"""A network over a box as mixed-integer linear constraints: big-M for ReLU and maximum, affine layers as matrices.

With 0/1 variables the constraints describe the network exactly; with these relaxed to [0, 1] they describe the triangle
relaxation (for ReLUs).

Source: Tjeng, Xiao, Tedrake, "Evaluating Robustness of Neural Networks with Mixed Integer Programming" (2019),
section 4.1 (ReLU) and appendix A.1 (maximum).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from expressive_losses.bounds.layers import Affine, LayerGraph, MaxPool, interval_of
from expressive_losses.types import Box

CHUNK = 256  # basis vectors pushed through a layer at once, to get its matrix
WIDEN = 1e-9  # relative: bounds come from floating point, and must not cut off what they border on
#: Of the largest coefficient of a constraint: by how much HiGHS may let it fail. Twice its tolerance (1e-6), for the
#: constraint and for a 0/1 variable in it; and the coefficients below 1e-9 that it drops, of variables up to 1.
FAILS, DROPS = 2e-6, 1e-9
#: What a reduced cost may be off by, for each variable.
COST = 1e-7


@dataclass(frozen=True)
class Expression:
    """Affine expressions in the variables of a model: ``matrix @ variables + constant``, one row a neuron.

    A matrix may have fewer columns than the model has variables by now.
    """

    matrix: sparse.csr_matrix
    constant: ndarray

    def rows(self, which: ndarray) -> Expression:
        """Return some of the expressions."""
        return Expression(self.matrix[which], self.constant[which])

    def __add__(self, other: Expression) -> Expression:
        columns = max(self.matrix.shape[1], other.matrix.shape[1])
        matrix = _widened(self.matrix, columns) + _widened(other.matrix, columns)
        return Expression(matrix, self.constant + other.constant)

    def __neg__(self) -> Expression:
        return Expression(-self.matrix, -self.constant)

    def scaled(self, factors: ndarray) -> Expression:
        """Return each expression times its factor."""
        return Expression(sparse.diags(factors) @ self.matrix, factors * self.constant)

    def at(self, point: ndarray) -> ndarray:
        """Return the values where the variables are ``point``, which may have more of them."""
        return self.matrix @ point[: self.matrix.shape[1]] + self.constant

    def after(self, matrix: sparse.csr_matrix, bias: ndarray) -> Expression:
        """Return ``matrix @ self + bias``."""
        return Expression((matrix @ self.matrix).tocsr(), matrix @ self.constant + bias)


@dataclass(frozen=True)
class Solution:
    """What the solver says of one minimisation.

    Attributes:
        lower: its lower bound of the minimum, -inf if there is none; see :meth:`Encoded.least`.
        point: values of all variables, from 0 to 1, at the best solution, or ``None``.
        finished: whether the solver was through within its time.
    """

    lower: float
    point: ndarray | None
    finished: bool


class Model:
    """Variables with bounds, some of them 0/1, and linear constraints.

    To the solver every variable goes from 0 to 1, and every constraint has 1 as its largest coefficient: it knows
    absolute tolerances only, and would take neurons of 1e-6 for 0, whatever weights come after them.
    """

    def __init__(self) -> None:
        self._integer: list[ndarray] = []
        self._rows: list[tuple[sparse.csr_matrix, ndarray]] = []
        self.size = 0

    def variables(self, lower: ndarray, upper: ndarray, integer: bool = False) -> Expression:
        """Add variables and return them as expressions."""
        count = len(lower)
        columns = np.arange(self.size, self.size + count)
        self._integer.append(np.full(count, int(integer)))
        self.size += count
        shape = (count, self.size)
        matrix = sparse.csr_matrix((upper - lower, (np.arange(count), columns)), shape=shape)
        return Expression(matrix, lower.astype(float))

    def at_least_zero(self, expression: Expression) -> None:
        """Demand expression >= 0 of every row."""
        largest = _largest(expression.matrix)
        scaled = expression.scaled(1 / np.where(largest > 0, largest, 1.0))
        self._rows.append((scaled.matrix, -scaled.constant))

    @property
    def binaries(self) -> int:
        """Number of 0/1 variables."""
        return int(sum(one.sum() for one in self._integer))

    def minimize(self, objective: Expression, seconds: float, gap: float = 0.0, relaxed: bool = False) -> Solution:
        """Minimise one expression.

        Args:
            objective: of one row.
            seconds: time limit.
            gap: stop when (best - bound) / abs(best) is at most this.
            relaxed: let the 0/1 variables have any value from 0 to 1: a linear program.
        """
        # One more variable, which is 1, takes the constant: the solver's gap is relative to the whole objective.
        cost = np.append(_widened(objective.matrix, self.size).toarray()[0], objective.constant)
        integer = np.concatenate([*self._integer, [0]]) * (not relaxed)
        bounds = Bounds(np.append(np.zeros(self.size), 1.0), 1.0)
        options = {"time_limit": max(seconds, 0.01), "mip_rel_gap": gap}
        found = milp(cost, integrality=integer, bounds=bounds, constraints=self._constraints(), options=options)
        finished = found.status == 0
        if integer.any():
            lower = found.mip_dual_bound
        else:  # a linear program that was solved: the minimum itself; else nothing is proven
            lower = found.fun if finished else None
        lower = -np.inf if lower is None or not np.isfinite(lower) else float(lower)
        return Solution(lower, found.x, finished)

    def _constraints(self) -> Sequence[LinearConstraint]:
        if not self._rows:
            return []
        matrix = sparse.vstack([_widened(rows, self.size + 1) for rows, _ in self._rows], format="csr")
        return [LinearConstraint(matrix, np.concatenate([least for _, least in self._rows]), np.inf)]


def intervals(graph: LayerGraph, box: Box, relu_inputs: Sequence[Box] | None) -> list[Box]:
    """Return bounds on every layer's output over a box of one normalised input, by intervals and by what else is known.

    Args:
        graph: of float64.
        box: (1, *shape).
        relu_inputs: for each ReLU of the graph, further bounds on its input, or ``None``.
    """
    known = {} if relu_inputs is None else dict(zip(graph.relus, relu_inputs, strict=True))
    by_source = {graph.layers[at].inputs[0]: one for at, one in known.items()}
    boxes = [box]
    for at, layer in enumerate(graph.layers[1:], start=1):
        found = interval_of(layer, *(boxes[source] for source in layer.inputs))
        if at in by_source:
            further = by_source[at]
            lower = torch.maximum(found.lower, further.lower.to(found.lower))
            upper = torch.minimum(found.upper, further.upper.to(found.upper))
            found = Box(torch.minimum(lower, upper), torch.maximum(lower, upper))  # equal but for rounding
        boxes.append(found)
    return [box, *map(_widened_box, boxes[1:])]


@dataclass(frozen=True)
class Encoded:
    """A network over a box.

    Attributes:
        model: the constraints.
        input, output: values of the first and of the last layer.
        errors: by how much the solver's outputs may differ from those of its inputs: constraints that fail within its
            tolerances, carried through the weights after them.
    """

    model: Model
    input: Expression
    output: Expression
    errors: ndarray

    def least(self, lower: float, *outputs: int) -> float:
        """Return what the solver's tolerances leave of its lower bound on a sum or difference of outputs."""
        return lower - float(self.errors[list(outputs)].sum()) - COST * self.model.size


def encode(graph: LayerGraph, matrices: Sequence[sparse.csr_matrix | None], boxes: Sequence[Box]) -> Encoded:
    """Return the network over a box as a model.

    Args:
        graph: the layers.
        matrices: of :func:`matrices_of`.
        boxes: of :func:`intervals`.
    """
    model = Model()
    expressions = [model.variables(*_ends(boxes[0]))]
    errors = [FAILS * _largest(expressions[0].matrix)]
    for layer, matrix in zip(graph.layers[1:], matrices[1:], strict=True):
        inputs, wrong = [expressions[at] for at in layer.inputs], [errors[at] for at in layer.inputs]
        if layer.kind == "affine":
            value, error = inputs[0].after(matrix, _bias(layer)), abs(matrix) @ wrong[0]
        elif layer.kind == "add":
            value, error = inputs[0] + inputs[1], wrong[0] + wrong[1]
        else:
            lower, upper = _ends(boxes[layer.inputs[0]])
            wrong = wrong[0] + _failing(inputs[0], lower, upper)
            if layer.kind == "relu":
                value, error = _relu(model, inputs[0], lower, upper), wrong * (upper > 0)
            else:
                value = _maximum(model, layer, inputs[0], lower, upper)
                error = wrong[layer.windows.flatten(1).T.cpu().numpy()].max(1)
        expressions.append(value)
        errors.append(error)
    return Encoded(model, expressions[0], expressions[-1], errors[-1])


def _failing(z: Expression, lower: ndarray, upper: ndarray) -> ndarray:
    """Return by how much a ReLU or maximum of ``z`` may be wrong where its constraints fail within tolerance."""
    largest = np.maximum(_largest(z.matrix), np.maximum(abs(lower), abs(upper)))
    return largest * (FAILS + DROPS * np.diff(z.matrix.indptr))


def _largest(matrix: sparse.csr_matrix) -> ndarray:
    """Return the largest absolute coefficient of each row; 0 where there is none."""
    return abs(matrix).max(axis=1).toarray().ravel() if matrix.shape[1] else np.zeros(matrix.shape[0])


def _relu(model: Model, z: Expression, lower: ndarray, upper: ndarray) -> Expression:
    """y = max(z, 0): y = 0 or y = z where the sign of z is known; else, with a 0/1 variable d,
    y >= 0, y >= z, y <= z - l (1 - d), y <= u d."""
    active, unstable = lower >= 0, (lower < 0) & (upper > 0)
    y = model.variables(np.zeros(len(lower)), np.maximum(upper, 0))
    _equal(model, y.rows(active), z.rows(active))
    if unstable.any():
        low, high, y_open, z_open = lower[unstable], upper[unstable], y.rows(unstable), z.rows(unstable)
        d = model.variables(np.zeros(len(low)), np.ones(len(low)), integer=True)
        model.at_least_zero(y_open + -z_open)
        model.at_least_zero(z_open + -y_open + _constant(-low) + d.scaled(low))
        model.at_least_zero(d.scaled(high) + -y_open)
    return y


def _maximum(model: Model, layer: MaxPool, x: Expression, lower: ndarray, upper: ndarray) -> Expression:
    """y = max of each window. Members that can never be the largest are left out; if one is left, y is it; else, with
    0/1 variables d of sum 1, y >= x_i and y <= x_i + (1 - d_i) (largest upper bound of the others - l_i)."""
    windows = layer.windows.flatten(1).T.cpu().numpy()
    floors = lower[windows].max(1)
    y = model.variables(floors, upper[windows].max(1))
    at, members = _candidates(windows, floors, upper)
    alone = np.bincount(at, minlength=len(windows))[at] == 1
    _equal(model, y.rows(at[alone]), x.rows(members[alone]))
    at, members = at[~alone], members[~alone]
    if len(at) == 0:
        return y
    slack = np.maximum(_largest_of_others(at, upper[members], len(windows)) - lower[members], 0)
    d = model.variables(np.zeros(len(at)), np.ones(len(at)), integer=True)
    y_open, x_open = y.rows(at), x.rows(members)
    model.at_least_zero(y_open + -x_open)
    model.at_least_zero(x_open + -y_open + _constant(slack) + d.scaled(-slack))
    which, row = np.unique(at, return_inverse=True)
    pick = sparse.csr_matrix((np.ones(len(at)), (row, np.arange(len(at)))), shape=(len(which), len(at)))
    _equal(model, d.after(pick, np.zeros(len(which))), _constant(np.ones(len(which))))
    return y


def _candidates(windows: ndarray, floors: ndarray, upper: ndarray) -> tuple[ndarray, ndarray]:
    """Return (window, member) pairs of the members that may be the largest, each once; at least one for each window."""
    at = np.repeat(np.arange(len(windows)), windows.shape[1])
    pairs = np.unique(np.stack([at, windows.flatten()]), axis=1)
    return tuple(pairs[:, upper[pairs[1]] >= floors[pairs[0]]])


def _largest_of_others(at: ndarray, upper: ndarray, count: int) -> ndarray:
    """Return, for each member, the largest upper bound among the others of its window."""
    first = np.full(count, -np.inf)
    np.maximum.at(first, at, upper)
    leads = upper == first[at]
    several = np.bincount(at[leads], minlength=count) > 1
    second = np.full(count, -np.inf)
    np.maximum.at(second, at[~leads], upper[~leads])
    return np.where(leads & ~several[at], second[at], first[at])


def matrices_of(graph: LayerGraph) -> list[sparse.csr_matrix | None]:
    """Return the matrix of each affine layer, (out, in), and ``None`` for the other layers."""
    return [_matrix(layer) if isinstance(layer, Affine) else None for layer in graph.layers]


def _matrix(layer: Affine) -> sparse.csr_matrix:
    size = torch.Size(layer.in_shape).numel()
    columns = []
    for begin in range(0, size, CHUNK):
        basis = torch.zeros(min(CHUNK, size - begin), size, dtype=torch.float64)
        basis[torch.arange(len(basis)), begin + torch.arange(len(basis))] = 1
        with torch.no_grad():
            images = layer.linear(basis.view(-1, *layer.in_shape))
        columns.append(sparse.csr_matrix(images.flatten(1).numpy()))
    return sparse.vstack(columns).T.tocsr()


def _bias(layer: Affine) -> ndarray:
    if layer.bias is None:
        return np.zeros(layer.size)
    return layer.bias.expand(layer.shape).flatten().numpy()


def _equal(model: Model, left: Expression, right: Expression) -> None:
    if len(left.constant):
        model.at_least_zero(left + -right)
        model.at_least_zero(right + -left)


def _constant(values: ndarray) -> Expression:
    return Expression(sparse.csr_matrix((len(values), 0)), values)


def _widened(matrix: sparse.csr_matrix, columns: int) -> sparse.csr_matrix:
    return sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns))


def _widened_box(box: Box) -> Box:
    slack = WIDEN * (1 + torch.maximum(box.lower.abs(), box.upper.abs()))
    return Box(box.lower - slack, box.upper + slack)


def _ends(box: Box) -> tuple[ndarray, ndarray]:
    return tuple(_flat(one) for one in (box.lower, box.upper))


def _flat(tensor: Tensor) -> ndarray:
    return tensor.detach().flatten().double().cpu().numpy()
