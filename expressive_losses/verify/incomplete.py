"""Stages that bound the margins: they verify, or leave unknown."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork, BoundMethod
from expressive_losses.errors import UnsupportedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box
from expressive_losses.verify.base import (
    DEFAULT_TOLERANCE,
    Problem,
    Verdict,
    Verifier,
    verdict_of_bounds,
)
from expressive_losses.verify.precise import with_second_look


@torch.no_grad()
def margins_by(
    name: str, network: BoundedNetwork, box: Box, labels: Tensor, method: BoundMethod, **options: Any
) -> Tensor:
    """Return the margins' lower bounds, (B, K-1), for the verifier ``name``.

    Raises:
        UnsupportedNetwork: naming the verifier, when auto_LiRPA cannot handle a layer.
    """
    try:
        return network.margins(box, labels, method, **options)
    except UnsupportedNetwork as error:
        raise UnsupportedNetwork(f"bound '{name}': {error}") from error


class BoundVerifier(Verifier):
    """VERIFIED where every margin's lower bound exceeds the tolerance, in float64 if float32 cannot tell.

    Attributes:
        tolerance: see :meth:`expressive_losses.verify.base.Problem.threshold`.
    """

    kind: ClassVar[str] = "bound"
    method: ClassVar[BoundMethod]
    tolerance: float = Field(default=DEFAULT_TOLERANCE, ge=0)

    def options(self) -> dict[str, Any]:
        """Return the method's own settings."""
        return {}

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        def bound(network: BoundedNetwork, box: Box, labels: Tensor) -> Tensor:
            return margins_by(self.name, network, box, labels, self.method, **self.options())

        verdict = verdict_of_bounds(problem, bound(network, problem.box, problem.labels), self.tolerance)
        return with_second_look(network, problem, verdict, self.tolerance, bound)


@VERIFIERS.register("ibp")
class Ibp(BoundVerifier):
    """Interval bound propagation: the cheapest, and enough for networks trained for it."""

    method: ClassVar[BoundMethod] = "ibp"
    reproducible: ClassVar[bool] = True


@VERIFIERS.register("crown-ibp")
class CrownIbp(BoundVerifier):
    """CROWN for the margins, with IBP bounds on the hidden layers."""

    method: ClassVar[BoundMethod] = "crown_ibp"
    reproducible: ClassVar[bool] = True
    batch_sizes: ClassVar[tuple[int, int]] = (64, 512)


@VERIFIERS.register("crown")
class Crown(BoundVerifier):
    """CROWN for the margins and for every hidden layer.

    A neuron unstable for one image is bounded for its whole batch: on a CPU, one image at a time is fastest.
    """

    method: ClassVar[BoundMethod] = "crown"
    reproducible: ClassVar[bool] = True
    batch_sizes: ClassVar[tuple[int, int]] = (1, 64)


@VERIFIERS.register("alpha-crown")
class AlphaCrown(BoundVerifier):
    """CROWN with optimised slopes of the unstable ReLUs.

    Attributes:
        iterations: steps of Adam on the slopes.
        lr: its step size.
        decay: factor on ``lr`` after each step.
        fix_intermediate: keep CROWN's bounds on the hidden layers, which is about ten times faster than to
            optimise those.
    """

    method: ClassVar[BoundMethod] = "alpha_crown"
    batch_sizes: ClassVar[tuple[int, int]] = (4, 64)
    iterations: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0)
    decay: float = Field(default=0.98, gt=0, le=1)
    fix_intermediate: bool = True

    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"tolerance"})
