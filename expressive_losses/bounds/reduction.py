"""The network over one box, reduced to the neurons whose sign the box does not fix.

A ReLU that cannot change its sign over the box is linear there, so the layers between the unstable neurons
multiply out: the network becomes matrices between input, unstable neurons and output, exactly. Certified networks
have few unstable neurons, and branch-and-bound asks for thousands of bounds over the same box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expressive_losses.bounds.beta_crown import Dual, Forms, Neurons, optimise
from expressive_losses.bounds.layers import Affine, LayerGraph, interval_of
from expressive_losses.types import Box

ROWS = 256  # rows of a backward pass through the layers at once: bounds the memory


@dataclass(frozen=True)
class Reduced:
    """Networks over their boxes, for I images. The input is u in [-1, 1]^D, x = centre + half-width * u.

    Attributes:
        neurons: the unstable neurons.
        outputs: the forms that were asked for, e.g. the margins f_y - f_j, (I, P).
        places: per image, the (layer, position) of every neuron in the layer graph: rows of (block, flat index).
    """

    neurons: Neurons
    outputs: Forms
    places: tuple[Tensor, ...] = ()

    def rows(self, images: Tensor) -> Reduced:
        """Return the networks of some of the images."""
        return Reduced(self.neurons.rows(images), self.outputs.rows(images))

    def to(self, dtype: torch.dtype) -> Reduced:
        """Return the networks in another precision."""
        if dtype == self.neurons.bias.dtype:
            return self
        return Reduced(self.neurons.to(dtype), self.outputs.to(dtype), self.places)


@dataclass(frozen=True)
class Tightening:
    """How the bounds on hidden neurons are computed.

    Attributes:
        method: "ibp" keeps interval bounds; "crown" refines those of unstable neurons.
        iterations, lr, decay: alpha-CROWN steps on each of them ("crown" only); 0 is plain CROWN.

    Source: paper "Expressive Losses", appendix D: IBP first, then 5 alpha-CROWN iterations, step 1 decayed by 0.98.
    """

    method: str = "crown"
    iterations: int = 5
    lr: float = 1.0
    decay: float = 0.98


CROWN = Tightening()


class TooManyNeurons(Exception):
    """The reduced network would have more unstable neurons than allowed."""


@torch.no_grad()
def reduce(
    graph: LayerGraph,
    box: Box,
    matrix: Tensor,
    tightening: Tightening = CROWN,
    most: int | None = None,
) -> Reduced:
    """Reduce the network over the box of one image.

    Args:
        graph: without max pooling; see :func:`expressive_losses.bounds.layers.without_max_pool`.
        box: normalised inputs, (1, *shape).
        matrix: C, (P, K): the forms C f are the outputs.
        tightening: of the bounds on hidden neurons.
        most: unstable neurons allowed.

    Raises:
        TooManyNeurons: when there are more.
    """
    return _Reducer(graph, box, tightening, most).run(matrix)


class _Reducer:
    """One walk through the layers: bound each, decide which neurons are unstable, multiply out what is linear."""

    def __init__(self, graph: LayerGraph, box: Box, tightening: Tightening, most: int | None) -> None:
        self._graph, self._tightening, self._most = graph, tightening, most
        self._center, self._half_width = box.center.flatten(), box.half_width.flatten()
        self._boxes = [box]
        self._active: dict[int, Tensor] = {}  # ReLU layer -> where it is the identity, (*shape)
        self._unstable: dict[int, Tensor] = {}  # ReLU layer -> flat positions
        empty = box.lower.new_zeros(1, 0)
        self._neurons = Neurons(
            empty.new_zeros(1, 0, len(self._center)), empty.new_zeros(1, 0, 0), empty, empty, empty, ()
        )

    def run(self, matrix: Tensor) -> Reduced:
        for at, layer in enumerate(self._graph.layers[1:], start=1):
            inputs = [self._boxes[i] for i in layer.inputs]
            if layer.kind == "relu":
                inputs = [self._relu(at, inputs[0])]
            self._boxes.append(interval_of(layer, *inputs))
        places = [
            torch.stack([torch.full_like(index, block), index], 1)
            for block, index in enumerate(self._unstable.values())
        ]
        outputs = self._forms(len(self._graph.layers) - 1, matrix)
        return Reduced(self._neurons, outputs, (torch.cat(places) if places else torch.zeros(0, 2),))

    def _relu(self, at: int, box: Box) -> Box:
        """Bound the input of a ReLU layer, add its unstable neurons, and return the refined box."""
        lower, upper = box.lower.flatten(), box.upper.flatten()
        index = ((lower < 0) & (upper > 0)).nonzero().squeeze(1)
        self._check(len(index))
        before = self._graph.layers[at].inputs[0]
        forms = self._one_hot_forms(before, index)
        if self._tightening.method == "crown" and len(index):
            lower, upper = lower.clone(), upper.clone()
            tight = self._bounds(forms, torch.stack([lower[index], upper[index]]))
            lower[index], upper[index] = tight[0], tight[1]
        keep = (lower[index] < 0) & (upper[index] > 0)
        kept = index[keep]
        self._append(
            Forms(forms.inputs[:, keep], forms.neurons[:, keep], forms.constant[:, keep]), lower[kept], upper[kept]
        )
        self._unstable[at] = kept
        self._active[at] = (lower >= 0).view(box.lower.shape[1:])
        return Box(lower.view_as(box.lower), upper.view_as(box.upper))

    def _check(self, more: int) -> None:
        # Refining may stabilise some, but its own cost grows with the number before it.
        if self._most is not None and self._neurons.count + more > self._most:
            raise TooManyNeurons(f"{self._neurons.count + more} unstable neurons, more than {self._most}")

    def _bounds(self, forms: Forms, known: Tensor) -> Tensor:
        """Return lower and upper bounds (2, M) of the forms, CROWN's and for what stays unstable alpha-CROWN's."""
        best = self._refined(forms, known, 0)
        open_ = ((best[0] < 0) & (best[1] > 0)).nonzero().squeeze(1)
        if self._tightening.iterations and self._neurons.count and len(open_):
            some = Forms(forms.inputs[:, open_], forms.neurons[:, open_], forms.constant[:, open_])
            best[:, open_] = self._refined(some, best[:, open_], self._tightening.iterations)
        return best

    def _refined(self, forms: Forms, known: Tensor, iterations: int) -> Tensor:
        parts = []
        for begin in range(0, forms.constant.shape[1], ROWS):
            at = slice(begin, begin + ROWS)
            part = Forms(*(torch.cat([t[:, at], -t[:, at]], 1) for t in (forms.inputs, forms.neurons, forms.constant)))
            count = part.constant.shape[1]
            sign = part.constant.new_zeros(1, count, self._neurons.count)
            how = self._tightening
            found = optimise(self._neurons, part, sign, Dual.start(self._neurons, count), iterations, how.lr, how.decay)
            lower, minus_upper = found.lower[0].chunk(2)
            parts.append(torch.stack([torch.fmax(known[0, at], lower), torch.fmin(known[1, at], -minus_upper)]))
        return torch.cat(parts, 1)

    def _append(self, forms: Forms, lower: Tensor, upper: Tensor) -> None:
        old, new = self._neurons, len(lower)
        wider = torch.nn.functional.pad(old.earlier, (0, new))
        below = torch.nn.functional.pad(forms.neurons, (0, new))
        self._neurons = Neurons(
            torch.cat([old.inputs, forms.inputs], 1),
            torch.cat([wider, below], 1),
            torch.cat([old.bias, forms.constant], 1),
            torch.cat([old.lower, lower[None]], 1),
            torch.cat([old.upper, upper[None]], 1),
            (*old.blocks, new),
        )

    def _one_hot_forms(self, at: int, index: Tensor) -> Forms:
        """Return single neurons of a layer's output as forms of input and earlier neurons."""
        size = self._graph.layers[at].size
        parts = [self._forms(at, self._one_hot(part, size)) for part in index.split(ROWS)]
        if not parts:
            return Forms(self._neurons.inputs[:, :0], self._neurons.earlier[:, :0], self._neurons.bias[:, :0])
        return Forms(*(torch.cat([getattr(p, f) for p in parts], 1) for f in ("inputs", "neurons", "constant")))

    def _one_hot(self, index: Tensor, size: int) -> Tensor:
        rows = self._center.new_zeros(len(index), size)
        return rows.scatter_(1, index.unsqueeze(1), 1.0)

    def _forms(self, at: int, rows: Tensor) -> Forms:
        """Pull linear forms (M, size) on the output of a layer back to the input and the unstable neurons."""
        layers = self._graph.layers
        pending = {at: rows.view(1, len(rows), *layers[at].shape)}
        constant = rows.new_zeros(1, len(rows))
        neurons = {}
        for j in range(at, 0, -1):
            a = pending.pop(j, None)
            if a is None:
                continue
            layer = layers[j]
            if isinstance(layer, Affine):
                constant = constant + layer.constant(a)
                a = layer.backward(a)
            elif layer.kind == "relu":
                neurons[j] = a.flatten(2)[..., self._unstable[j]]
                a = a * self._active[j]
            for source in layer.inputs:
                pending[source] = pending[source] + a if source in pending else a
        g = pending[0].flatten(2) if 0 in pending else rows.new_zeros(1, len(rows), len(self._center))
        parts = [neurons.get(j, rows.new_zeros(1, len(rows), len(i))) for j, i in self._unstable.items()]
        a = torch.cat(parts, 2) if parts else rows.new_zeros(1, len(rows), 0)
        return Forms(g * self._half_width, a, constant + g @ self._center)


def stack(networks: list[Reduced]) -> Reduced:
    """Return several reduced networks as one batch, each block padded to the largest of its kind.

    A place that only pads has no weights and both bounds 0, so it is an inactive neuron.
    """
    if len(networks) == 1:
        return networks[0]
    counts = [one.neurons.blocks for one in networks]
    blocks = tuple(max(sizes) for sizes in zip(*counts, strict=True))
    total, like = sum(blocks), networks[0].neurons.bias
    images, inputs = len(networks), networks[0].neurons.inputs.shape[2]
    forms = networks[0].outputs.constant.shape[1]
    neurons = Neurons(
        like.new_zeros(images, total, inputs), like.new_zeros(images, total, total), like.new_zeros(images, total),
        like.new_zeros(images, total), like.new_zeros(images, total), blocks,
    )  # fmt: skip
    outputs = like.new_zeros(images, forms, total)
    starts = torch.tensor((0, *blocks)).cumsum(0).tolist()
    for row, one in enumerate(networks):
        places = [range(s, s + n) for n, s in zip(one.neurons.blocks, starts[:-1], strict=True)]
        at = torch.tensor([place for block in places for place in block], dtype=torch.long, device=like.device)
        neurons.inputs[row, at] = one.neurons.inputs[0]
        neurons.earlier[row, at.unsqueeze(1), at] = one.neurons.earlier[0]
        neurons.bias[row, at] = one.neurons.bias[0]
        neurons.lower[row, at], neurons.upper[row, at] = one.neurons.lower[0], one.neurons.upper[0]
        outputs[row][:, at] = one.outputs.neurons[0]
    return Reduced(
        neurons,
        Forms(
            torch.cat([one.outputs.inputs for one in networks]),
            outputs,
            torch.cat([one.outputs.constant for one in networks]),
        ),
        tuple(place for one in networks for place in one.places),
    )
