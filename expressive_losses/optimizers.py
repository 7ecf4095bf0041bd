"""Optimisers by name: torch's own, with checked hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, model_validator

from expressive_losses.registry import OPTIMIZERS, Plugin


class Optimizer(Plugin):
    """Base: a learning rate and its schedule."""

    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimiser over ``parameters``."""
        raise NotImplementedError


_Beta = Annotated[float, Field(ge=0, lt=1)]


class _AdamFamily(Optimizer):
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)

    def _arguments(self) -> dict:
        return {"lr": self.lr, "weight_decay": self.weight_decay, "betas": self.betas, "eps": self.eps}


@OPTIMIZERS.register("adam")
class Adam(_AdamFamily):
    """Adam (all papers here)."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's fused Adam."""
        return torch.optim.Adam(parameters, fused=True, **self._arguments())


@OPTIMIZERS.register("adamw")
class AdamW(_AdamFamily):
    """Adam with decoupled weight decay."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's fused AdamW."""
        return torch.optim.AdamW(parameters, fused=True, **self._arguments())


@OPTIMIZERS.register("radam")
class RAdam(_AdamFamily):
    """Rectified Adam."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's RAdam."""
        return torch.optim.RAdam(parameters, foreach=True, **self._arguments())


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self):
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0")
        return self

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's fused SGD."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=True,
        )
