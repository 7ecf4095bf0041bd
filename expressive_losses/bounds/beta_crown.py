"""beta-CROWN lower bounds on a reduced network: batched over images and sub-problems, without autograd.

Over its box a network is an affine function of the input u in [-1, 1]^D and of its unstable neurons
y = relu(z), which in turn are affine in u and in earlier ones (:mod:`expressive_losses.bounds.reduction`).
So a bounding pass is a handful of matrix products, shared by all sub-problems of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from expressive_losses.bounds.products import product, usable


@dataclass(frozen=True)
class Neurons:
    """The unstable neurons of networks over their boxes: z = G u + L relu(z) + b.

    Attributes:
        inputs: G, (I, U, D).
        earlier: L, (I, U, U); zero but for columns of earlier blocks.
        bias: b, (I, U).
        lower, upper: bounds on z, (I, U). Places that only pad have both 0.
        blocks: sizes of the blocks (ReLU layers), in order of evaluation; their sum is U.
    """

    inputs: Tensor
    earlier: Tensor
    bias: Tensor
    lower: Tensor
    upper: Tensor
    blocks: tuple[int, ...]

    @property
    def count(self) -> int:
        """U."""
        return self.bias.shape[1]

    def spans(self) -> list[tuple[int, int]]:
        """Return (begin, end) of every block."""
        ends = list(accumulate(self.blocks, initial=0))
        return list(pairwise(ends))

    def rows(self, images: Tensor) -> Neurons:
        """Return the neurons of some of the images."""
        tensors = (self.inputs, self.earlier, self.bias, self.lower, self.upper)
        return Neurons(*(tensor[images] for tensor in tensors), self.blocks)

    def to(self, dtype: torch.dtype) -> Neurons:
        """Return the neurons in another precision, those unstable that were."""
        tiny = torch.finfo(dtype).tiny
        lower = torch.where(self.unstable, self.lower.to(dtype).clamp_max(-tiny), self.lower.to(dtype))
        upper = torch.where(self.unstable, self.upper.to(dtype).clamp_min(tiny), self.upper.to(dtype))
        return Neurons(*(x.to(dtype) for x in (self.inputs, self.earlier, self.bias)), lower, upper, self.blocks)

    @property
    def unstable(self) -> Tensor:
        """Where z may have both signs, (I, U) bool."""
        return (self.lower < 0) & (self.upper > 0)

    @cached_property
    def links(self) -> list[Tensor]:
        """L of each block on the neurons before it, (I, end - begin, begin): parts of ``earlier``.

        Without gaps where :func:`product` would else make a copy each time.
        """
        parts = [self.earlier[:, begin:end, :begin] for begin, end in self.spans()]
        return [part.contiguous() for part in parts] if usable(self.earlier) else parts

    @cached_property
    def rounding(self) -> Tensor:
        """What rounding can add up to in z, (I, U): as :class:`expressive_losses.bounds.rounding.Rounding` has it.

        In unit roundoffs abs(G) 2 + abs(L) (error of y + abs(y)) + abs(b), input and its half-widths being rounded; in
        float64 times the number of additions, once more for each block.
        """
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        error = 2 * self.inputs.abs().sum(2) + self.bias.abs()
        for begin, end in self.spans()[1:]:
            below = (error + size)[:, :begin].unsqueeze(2)
            error[:, begin:end] += (self.earlier[:, begin:end, :begin].abs() @ below).squeeze(2)
        terms = sum(self.inputs.shape[1:]) * (1 + len(self.blocks)) if error.dtype == torch.float64 else 1
        return terms * torch.finfo(error.dtype).eps * error


@dataclass(frozen=True)
class Forms:
    """Affine forms g . u + a . y + c of the input and the neurons: what is to be bounded from below.

    Attributes:
        inputs: g, (I, N, D).
        neurons: a, (I, N, U).
        constant: c, (I, N).
    """

    inputs: Tensor
    neurons: Tensor
    constant: Tensor

    def rows(self, images: Tensor) -> Forms:
        """Return the forms of some of the images."""
        return Forms(self.inputs[images], self.neurons[images], self.constant[images])

    def to(self, dtype: torch.dtype) -> Forms:
        """Return the forms in another precision."""
        return Forms(self.inputs.to(dtype), self.neurons.to(dtype), self.constant.to(dtype))

    def pick(self, index: Tensor) -> Forms:
        """Return the forms at ``index`` (I, N') of each image."""
        wide = index.unsqueeze(2)
        return Forms(
            self.inputs.gather(1, wide.expand(-1, -1, self.inputs.shape[2])),
            self.neurons.gather(1, wide.expand(-1, -1, self.neurons.shape[2])),
            self.constant.gather(1, index),
        )


@dataclass(frozen=True)
class Dual:
    """The variables of the bound.

    Attributes:
        alpha: slopes of the lower relaxation of the ReLUs, in [0, 1]; (I, N, U).
        beta: multipliers of the split constraints, >= 0, used where a neuron is split; (I, N, U).
    """

    alpha: Tensor
    beta: Tensor

    @classmethod
    def start(cls, neurons: Neurons, count: int) -> Dual:
        """Return CROWN's slopes (1 where upper > -lower, else 0) and beta 0, for ``count`` sub-problems an image."""
        slope = (neurons.upper > -neurons.lower).to(neurons.bias).unsqueeze(1)
        alpha = slope.repeat(1, count, 1)
        return cls(alpha, torch.zeros_like(alpha))

    def to(self, dtype: torch.dtype) -> Dual:
        """Return the variables in another precision."""
        return Dual(self.alpha.to(dtype), self.beta.to(dtype))


@dataclass(frozen=True)
class Bounded:
    """The outcome for each sub-problem.

    Attributes:
        lower: the bound, (I, N); it holds for every alpha and beta >= 0.
        dual: that gave it.
        point: the minimiser of the relaxation in [-1, 1]^D, (I, N, D).
        coefficients: of the lower bound with respect to y, (I, N, U): what branching looks at.
    """

    lower: Tensor
    dual: Dual
    point: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class Relaxation:
    """Linear bounds on y = relu(z) in every sub-problem: alpha z <= y <= up z + shift; each (I, N, U).

    A neuron that is split or stable is linear: alpha = up is 1 or 0 and shift is 0.

    Attributes:
        free: where alpha may be chosen: unstable and not split.
    """

    free: Tensor
    up: Tensor
    shift: Tensor


def relax(neurons: Neurons, sign: Tensor) -> Relaxation:
    """Return the triangle relaxation with the bounds on z clamped by the splits.

    Args:
        sign: of the splits, +1 for z >= 0, -1 for z <= 0, 0 for none; (I, N, U).
    """
    lower, upper = neurons.lower.unsqueeze(1), neurons.upper.unsqueeze(1)
    free = neurons.unstable.unsqueeze(1) & (sign == 0)
    width = (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
    active = (sign > 0) | ((sign == 0) & (lower >= 0) & (upper > 0))
    up = torch.where(free, upper / width, active.to(lower))
    shift = torch.where(free, -lower * up, 0.0)  # not -l u / (u - l): the product may overflow, or underflow
    return Relaxation(free, up, shift)


def lower_bound(
    neurons: Neurons, forms: Forms, relaxation: Relaxation, sign: Tensor, dual: Dual
) -> tuple[Bounded, Dual]:
    """Return a lower bound of each form over the box and the splits, and its gradient in alpha and beta.

    From the last block to the first: a form's coefficient A on y_j is replaced by A s_j on z_j - sign_j beta_j (the
    constraint -sign_j z_j <= 0 enters the Lagrangian with its multiplier), s_j = alpha_j where A >= 0, else up_j with
    A shift_j on the constant; then z_j is replaced by what it is made of. Over u in [-1, 1]^D the minimum of g . u is
    -sum abs(g), at u* = -sign(g). By the envelope theorem the gradient is what a forward pass of the relaxation at u*
    gives: d/d alpha_j = max(A_j, 0) z_j and d/d beta_j = -sign_j z_j.

    What the multipliers add may cancel, so what rounding can be in it, beta_j times that of z_j, is taken off; the rest
    goes through the weights of the network, whose rounding the caller allows for.

    Source: Wang et al., "Beta-CROWN", theorem 3.1; gradients checked against autograd in the tests.
    """
    slope = torch.where(relaxation.free, dual.alpha, relaxation.up)
    pull = sign * dual.beta
    a = forms.neurons.clone()
    through = torch.empty_like(a)
    for (begin, end), link in zip(reversed(neurons.spans()), reversed(neurons.links), strict=True):
        part = a[..., begin:end]
        chosen = torch.where(part >= 0, slope[..., begin:end], relaxation.up[..., begin:end])
        mine = part * chosen - pull[..., begin:end]
        through[..., begin:end] = mine
        if begin:
            a[..., :begin] += product(mine, link)
    negative = a < 0
    constant = forms.constant + (a.clamp_max(0) * relaxation.shift).sum(2)
    constant = constant + (through @ neurons.bias.unsqueeze(2)).squeeze(2)
    g = forms.inputs + product(through, neurons.inputs)
    point = -g.sign()
    chosen = torch.where(negative, relaxation.up, slope)
    z = _forward(neurons, point, chosen, torch.where(negative, relaxation.shift, 0.0))
    gradient = Dual(torch.where(relaxation.free, a.clamp_min(0) * z, 0.0), -sign * z)
    rounding = (pull.abs() @ neurons.rounding.unsqueeze(2)).squeeze(2)
    return Bounded(constant - g.abs().sum(2) - rounding, dual, point, a), gradient


def _forward(neurons: Neurons, u: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """Return z where every y = slope z + shift; u (I, N, D), the others (I, N, U)."""
    z = product(u, neurons.inputs.transpose(1, 2)) + neurons.bias.unsqueeze(1)
    y = torch.empty_like(z)
    for (begin, end), link in zip(neurons.spans(), neurons.links, strict=True):
        if begin:
            z[..., begin:end] += product(y[..., :begin], link.transpose(1, 2))
        y[..., begin:end] = z[..., begin:end] * slope[..., begin:end] + shift[..., begin:end]
    return z


@torch.no_grad()
def optimise(
    neurons: Neurons,
    forms: Forms,
    sign: Tensor,
    dual: Dual,
    iterations: int,
    lr: float = 0.1,
    decay: float = 0.98,
    target: float | Tensor = torch.inf,
) -> Bounded:
    """Ascend the bound in alpha and beta with Adam; the best of all steps, sub-problem by sub-problem.

    Args:
        sign: of the splits, (I, N, U), as in :func:`relax`.
        dual: where to start.
        iterations: steps of Adam; 0 bounds with ``dual`` as it is.
        lr, decay: step size, and the factor on it after each step.
        target: stop when every bound exceeds it; a number, or one for each sub-problem (I, N).
    """
    relaxation, sign = relax(neurons, sign), sign.to(neurons.bias)
    best, gradient = lower_bound(neurons, forms, relaxation, sign, dual)
    steps = (_Adam(dual.alpha), _Adam(dual.beta))
    split = bool(sign.any())
    for step in range(iterations):
        if (best.lower > target).all():
            break
        rate = lr * decay**step
        alpha = (dual.alpha + steps[0](gradient.alpha, rate)).clamp_(0, 1)
        beta = (dual.beta + steps[1](gradient.beta, rate)).clamp_min_(0) if split else dual.beta
        dual = Dual(alpha, beta)
        found, gradient = lower_bound(neurons, forms, relaxation, sign, dual)
        best = _better(best, found)
    return best


def _better(old: Bounded, new: Bounded) -> Bounded:
    wins = new.lower > old.lower  # a NaN never wins
    wide = wins.unsqueeze(2)

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(wide, one, other)

    dual = Dual(choose(new.dual.alpha, old.dual.alpha), choose(new.dual.beta, old.dual.beta))
    return Bounded(
        torch.where(wins, new.lower, old.lower),
        dual,
        choose(new.point, old.point),
        choose(new.coefficients, old.coefficients),
    )


class _Adam:
    """Adam's steps; torch.optim's would need leaves with gradients. Element by element: batch mates do not interact."""

    def __init__(self, like: Tensor) -> None:
        self._m, self._v = torch.zeros_like(like), torch.zeros_like(like)
        self._t = 0

    def __call__(self, gradient: Tensor, lr: float) -> Tensor:
        self._t += 1
        self._m.lerp_(gradient, 0.1)
        self._v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self._v / (1 - 0.999**self._t)).sqrt_().add_(1e-8)
        return self._m / scale * (lr / (1 - 0.9**self._t))


@torch.no_grad()
def relaxation_gap(neurons: Neurons, relaxation: Relaxation, found: Bounded) -> Tensor:
    """Return by how much each neuron's relaxation lowers the bound at its minimiser, (I, N, U), >= 0.

    abs(A) times the distance between the line used for y and relu(z), z as the relaxation has it at u*. Where
    nothing is relaxed the gap is 0; if all gaps are 0 the minimiser attains the bound.
    """
    a = found.coefficients
    slope = torch.where(relaxation.free & (a >= 0), found.dual.alpha, relaxation.up)
    shift = torch.where(a < 0, relaxation.shift, 0.0)
    z = _forward(neurons, found.point, slope, shift)
    return torch.where(relaxation.free, (a * (z * slope + shift - z.relu())).abs(), 0.0)


def evaluate(neurons: Neurons, forms: Forms, u: Tensor) -> Tensor:
    """Return the exact values of the forms at inputs ``u`` (I, N, D), one form a point; (I, N).

    Differentiable in u.
    """
    z = u @ neurons.inputs.transpose(1, 2) + neurons.bias.unsqueeze(1)
    y: list[Tensor] = []
    for begin, end in neurons.spans():
        part = z[..., begin:end]
        if begin:
            part = part + torch.cat(y, 2) @ neurons.earlier[:, begin:end, :begin].transpose(1, 2)
        y.append(part.relu())
    total = (u * forms.inputs).sum(2) + forms.constant
    return total + (torch.cat(y, 2) * forms.neurons).sum(2) if y else total
