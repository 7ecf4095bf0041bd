"""The first stage: is the clean image classified correctly?"""

from __future__ import annotations

from typing import ClassVar

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify.base import Problem, Status, Verdict, Verifier


@VERIFIERS.register("clean")
class Clean(Verifier):
    """MISCLASSIFIED unless f_y > f_j for every other class: a tie or a NaN is not a correct prediction."""

    kind: ClassVar[str] = "clean"

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        correct = (margins_of(problem.logits, problem.labels) > 0).all(1).tolist()
        status = tuple(Status.UNKNOWN if one else Status.MISCLASSIFIED for one in correct)
        return Verdict(status, problem.margins, predictions=problem.logits.argmax(1))
