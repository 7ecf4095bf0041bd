"""Averages of the weights over training steps or epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expressive_losses.config import AveragingConfig


class WeightAverage:
    """An average of a network's parameters, kept beside them.

    "ema": a <- decay a + (1 - decay) w after every step; "swa": the mean of the weights after each epoch. Both
    begin when ``start`` epochs are done, with the weights of that moment; until then, and for "none", the
    average is the network itself.

    Args:
        config: kind, start and decay.
        network: whose parameters are averaged. BatchNorm's running statistics are not averaged but computed anew
            for the averaged weights, see :meth:`applied`.

    Source: Izmailov et al. (2018), "Averaging weights leads to wider optima and better generalization".
    """

    def __init__(self, config: AveragingConfig, network: nn.Module) -> None:
        self._config = config
        self._network = network
        self._weights: dict[str, Tensor] = {}
        self._count = 0

    @property
    def begun(self) -> bool:
        """Whether there is an average."""
        return self._count > 0

    @torch.no_grad()
    def update(self, epochs: float, epoch_is_over: bool) -> None:
        """Take the network's weights in, if it is time.

        Args:
            epochs: done, with fraction.
            epoch_is_over: whether the last step was the last of its epoch.
        """
        kind = self._config.kind
        if kind == "none" or epochs < self._config.start or (kind == "swa" and not epoch_is_over):
            return
        share = 1 / (self._count + 1) if kind == "swa" or not self.begun else 1 - self._config.decay
        for name, parameter in self._network.named_parameters():
            if not self.begun:
                self._weights[name] = parameter.detach().clone()
            else:
                self._weights[name].lerp_(parameter, share)
        self._count += 1

    @torch.no_grad()
    def apply(self, refresh: Callable[[], None]) -> None:
        """Put the average, if there is one, into the network for good.

        Args:
            refresh: computes BatchNorm's running statistics for the weights as they then are.
        """
        if not self.begun:
            return
        for name, parameter in self._network.named_parameters():
            parameter.copy_(self._weights[name])
        refresh()

    @contextmanager
    def applied(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Evaluate the average inside the context; weights and statistics are back after it."""
        kept = {name: value.clone() for name, value in self._network.state_dict().items()} if self.begun else None
        self.apply(refresh)
        try:
            yield
        finally:
            if kept is not None:
                self._network.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"count": self._count, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, on the network's device."""
        self._count = state["count"]
        like = dict(self._network.named_parameters())
        self._weights = {name: value.to(like[name].device) for name, value in state["weights"].items()}
