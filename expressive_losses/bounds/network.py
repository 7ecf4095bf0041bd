"""A classifier with bounds: a plain module, and auto_LiRPA over the same parameters."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from expressive_losses import distributed
from expressive_losses.bounds import lirpa
from expressive_losses.bounds.chain import Stage, chain_of, frozen_logits, train_logits
from expressive_losses.bounds.crown_ibp import crown_ibp_margins, crown_ibp_rows, transposable
from expressive_losses.bounds.interval import interval_bounds
from expressive_losses.bounds.loss_fusion import SummedExponentials
from expressive_losses.bounds.rounding import Rounding
from expressive_losses.bounds.statistics import (
    BatchStatistics,
    batch_norms,
    record_statistics,
    share_statistics,
    use_statistics,
)
from expressive_losses.errors import UnsupportedNetwork, UserError
from expressive_losses.types import Bounds, Box, specification

BoundMethod = Literal["ibp", "ibp_logits", "crown_ibp", "crown_ibp_fused", "crown", "alpha_crown"]
BOUND_METHODS: tuple[str, ...] = get_args(BoundMethod)
#: Those that training differentiates through.
TRAINING_METHODS = ("ibp", "ibp_logits", "crown_ibp", "crown_ibp_fused")


class BoundedNetwork(nn.Module):
    """A classifier on images in pixel units, with sound lower bounds on its margins.

    Normalisation belongs to the network: callers, radii and boxes know pixel units only. The box is normalised
    before it is bounded, which is exact because (x - mean) / std is affine and increasing in every pixel.

    Args:
        model: maps normalised images (B, *shape) to logits (B, classes).
        shape: image shape (C, H, W).
        classes: number of logits K.
        mean, std: per channel, in pixel units.
        fast_chain: compute IBP and CROWN-IBP of plain chains without auto_LiRPA (same bounds, less time and
            memory); other networks and other methods go to auto_LiRPA in any case.

    Raises:
        UserError: when mean or standard deviation are not numbers, not positive, or not one a channel.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: Sequence[int],
        classes: int,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        fast_chain: bool = True,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise UserError(f"a classifier has at least 2 classes, got {classes}")
        if not {len(mean), len(std)} <= {1, shape[0]}:
            raise UserError(
                f"normalisation: mean and std take 1 or {shape[0]} numbers, one a channel, "
                f"got {len(mean)} and {len(std)}"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"normalisation: std must be positive and mean finite, got {tuple(std)} and {tuple(mean)}")
        self.model = model
        self.shape = tuple(shape)
        self.classes = classes
        per_channel = (1, -1) + (1,) * (len(self.shape) - 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(per_channel))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(per_channel))
        self.fast_chain = fast_chain
        self._graphs: dict[bool, lirpa.Graph] = {}
        self._graphs_of: tuple[Any, ...] = ()
        self._graph_parts: list[Any] = []
        self._rounding: tuple[tuple[str | int, ...], Rounding] | None = None

    @property
    def _chain(self) -> list[Stage] | None:
        """The stages, read anew each time (microseconds): layers may have been replaced or hooked since."""
        return chain_of(self.model, len(self.shape) == 1) if self.fast_chain else None

    @property
    def _transposable(self) -> bool:
        return (chain := self._chain) is not None and transposable(chain)

    def normalize(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, *shape) in pixel units."""
        return self.model(self.normalize(x))

    def train_logits(self, x: Tensor) -> tuple[Tensor, BatchStatistics]:
        """Return the logits in train mode, and BatchNorm's statistics of this batch with gradient.

        Running statistics are updated. All of it over the whole batch where several processes share it. Needs train
        mode.
        """
        if self._chain is not None:
            logits, statistics = train_logits(self._chain, self.normalize(x))
            return logits, {f"model.{name}": value for name, value in statistics.items()}
        collecting = record_statistics if distributed.processes() == 1 else share_statistics
        with collecting(self) as statistics:
            return self(x), statistics

    @property
    def is_fast_chain(self) -> bool:
        """Whether training runs on the fast path only, which never waits for the device."""
        return self._transposable

    def weights_after_sums(self) -> list[Tensor]:
        """Return the weights of layers that read the ReLU of a sum of two branches; none in a plain chain.

        None either of a network that auto_LiRPA cannot read, whose bounds nobody can ask for.
        """
        if self._chain is not None:
            return []
        try:
            return self._graph("ibp").weights_after_sums()
        except UnsupportedNetwork:
            return []

    @contextmanager
    def frozen(self, statistics: BatchStatistics | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the logits in eval mode as a function of images, for attacks: its gradient is that to the images.

        Args:
            statistics: of BatchNorm; ``None``: the running ones.
        """
        if self._chain is not None:
            logits = frozen_logits(self._chain, self._statistics(statistics))
            yield lambda x: logits(self.normalize(x))
        else:
            with use_statistics(self, statistics):
                yield self

    def bounds(
        self,
        box: Box,
        labels: Tensor,
        method: BoundMethod = "ibp",
        statistics: BatchStatistics | None = None,
        hidden: bool = True,
        **options,
    ) -> Bounds:
        """Return lower bounds on f_y - f_j over the box, with the bounds on every ReLU's input.

        The last linear layer is merged into the specification (elision), which is tighter than subtracting
        logit bounds.

        Args:
            box: pixel units, (B, *shape).
            labels: (B,) int64.
            method: "ibp"; "ibp_logits" (IBP without elision: differences of logit bounds); "crown_ibp" (IBP inside,
                CROWN for the margins); "crown_ibp_fused" (the same for their summed exponentials: one number in place
                of K-1, see :mod:`expressive_losses.bounds.loss_fusion`); "crown"; "alpha_crown".
            statistics: BatchNorm statistics to bound with, gradients flow into them; ``None`` means the running ones.
            hidden: whether the bounds on the ReLUs' inputs are wanted; without them IBP takes less memory.
            options: of alpha-CROWN, see :meth:`expressive_losses.bounds.lirpa.Graph.bounds`; of IBP,
                ``relu_shrink``, see :func:`expressive_losses.bounds.interval.interval_bounds`.

        Raises:
            UserError: when auto_LiRPA cannot bound one of the layers, or there is no such option for this network.
        """
        if method not in BOUND_METHODS:
            raise UserError(f"unknown bound '{method}'; known: {', '.join(BOUND_METHODS)}")
        normalised = Box(self.normalize(box.lower), self.normalize(box.upper))
        if method == "ibp" and self._chain is not None:
            given = self._statistics(statistics)
            return interval_bounds(self._chain, normalised, labels, given, hidden=hidden, **options)
        if "relu_shrink" in options:
            raise UserError(
                f"relu_shrink: only for bound 'ibp' on a plain chain of layers, not for '{method}' on this network"
            )
        if method == "crown_ibp_fused" and options:
            raise UserError(f"bound '{method}' takes no options, got {', '.join(options)}")
        if method == "crown_ibp_fused" or (method == "crown_ibp" and self._transposable and not options):
            return self._with_ibp(normalised, labels, statistics, method)[method]
        matrices = specification(labels, self.classes, normalised.lower.dtype)
        return self._graph(method).bounds(normalised, matrices, method, self._statistics(statistics), **options)

    def margins(self, box: Box, labels: Tensor, method: BoundMethod = "ibp", **options) -> Tensor:
        """Return only the margins of :meth:`bounds`, (B, K-1)."""
        return self.bounds(box, labels, method, **options).margins

    def bounds_of(
        self,
        box: Box,
        labels: Tensor,
        methods: Sequence[BoundMethod],
        statistics: BatchStatistics | None = None,
        hidden: bool = True,
        **options,
    ) -> dict[str, Bounds]:
        """Return :meth:`bounds` for several methods; IBP comes out of CROWN-IBP's own pass, not out of a second one.

        Args:
            box, labels, statistics, hidden, options: see :meth:`bounds`.
            methods: any number of them.
        """
        found, second = {}, [method for method in methods if method in ("crown_ibp", "crown_ibp_fused")]
        if "ibp" in methods and second and not options:
            normalised = Box(self.normalize(box.lower), self.normalize(box.upper))
            found = self._with_ibp(normalised, labels, statistics, second[0])
        rest = [method for method in methods if method not in found]
        return found | {method: self.bounds(box, labels, method, statistics, hidden, **options) for method in rest}

    def rounding(self) -> Rounding:
        """Return how large the rounding errors of margins and their bounds can be, in eval mode; computed once."""
        state = self.state()
        if self._rounding is None or self._rounding[0] != state:
            self._rounding = state, Rounding(self.model, self.shape, self.mean, self.std)
        return self._rounding[1]

    def state(self) -> tuple[str | int, ...]:
        """Return what changes when layers, parameters or buffers do: for what is computed once of them.

        By their values, because torch does not count what is written to ``tensor.data``.
        """
        tensors = [*self.parameters(), *self.buffers()]
        values = (tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy() for tensor in tensors)
        return (repr(self.model), *map(id, self.model.modules()), *map(zlib.crc32, values))

    def _with_ibp(
        self, box: Box, labels: Tensor, statistics: BatchStatistics | None, method: BoundMethod
    ) -> dict[str, Bounds]:
        """Return the bounds of IBP and of a method that begins with it, "crown_ibp" or "crown_ibp_fused".

        Args:
            box: normalised.
        """
        own = self._statistics(statistics)
        if self._transposable:
            ibp = interval_bounds(self._chain, box, labels, own)
            return {"ibp": ibp, method: self._after_ibp(ibp, labels, own, method)}
        matrices, graph = specification(labels, self.classes, box.lower.dtype), self._graph(method)
        if method == "crown_ibp":
            ibp, found = graph.ibp_and_crown_ibp(box, matrices, own)
        else:
            ibp, found = graph.ibp_and_fused(box, matrices, labels, own)
        return {"ibp": ibp, method: found}

    def _after_ibp(self, ibp: Bounds, labels: Tensor, own: BatchStatistics | None, method: BoundMethod) -> Bounds:
        """Return the bounds of a chain by one backward pass between IBP's."""
        chain, inside = self._chain, ibp.relu_inputs
        if method == "crown_ibp":
            margins = crown_ibp_margins(chain, ibp.input, inside, labels, own)
        else:
            exponentials = SummedExponentials(ibp)
            margins = exponentials.margin(crown_ibp_rows(chain, ibp.input, inside, exponentials.row(labels), own))
        return replace(ibp, margins=margins, upper=None)

    def _statistics(self, statistics: BatchStatistics | None) -> BatchStatistics | None:
        prefix = "model."
        return None if statistics is None else {name.removeprefix(prefix): value for name, value in statistics.items()}

    def _graph(self, method: BoundMethod) -> lirpa.Graph:
        """Return the bounded graph, built at first use; alpha-CROWN has its own: it keeps state on the nodes."""
        # auto_LiRPA holds the parameters themselves: others in their place, or other layers, need another graph; and so
        # do other settings of layers, or other values of buffers, but for BatchNorm's, which are handed to it
        handed = {id(buffer) for layer in batch_norms(self.model).values() for buffer in layer.buffers()}
        buffers = [buffer for buffer in self.model.buffers() if id(buffer) not in handed]
        parts = [*self.model.modules(), *self.model.parameters(), *buffers]
        found = (repr(self.model), *map(id, parts), *(buffer._version for buffer in buffers))
        if found != self._graphs_of:
            self._graphs.clear()
            self._graphs_of, self._graph_parts = found, parts  # held: what is freed may give its id to another
        own = method == "alpha_crown"
        if own not in self._graphs:
            self._graphs[own] = lirpa.Graph(self.model, self.shape, self.mean)
        return self._graphs[own]

    def _apply(self, fn, recurse: bool = True):
        self._graphs.clear()  # built for one device and dtype
        self._rounding = None
        return super()._apply(fn, recurse)
