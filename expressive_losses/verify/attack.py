"""Stages that look for counterexamples with an attack."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from expressive_losses.attacks.apgd import Apgd, ApgdT
from expressive_losses.attacks.base import Attack
from expressive_losses.attacks.pgd import Pgd
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.registry import ATTACKS, VERIFIERS
from expressive_losses.verify.base import Problem, Status, Verdict, Verifier, is_counterexample


class AttackVerifier(Verifier):
    """FALSIFIED where the attack's point, evaluated again, is not classified as the label."""

    kind: ClassVar[str] = "attack"

    @abstractmethod
    def make_attack(self) -> Attack:
        """Return the attack to run."""

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Verdict:
        noise = problem.generators(self.name)
        with network.frozen() as logits:  # BatchNorm merged into the weights, and faster gradients
            x = self.make_attack()(logits, problem.box, problem.labels, noise, start=problem.images)
        found = is_counterexample(network, problem.box, problem.labels, x).tolist()
        return Verdict(tuple(Status.FALSIFIED if one else Status.UNKNOWN for one in found), problem.margins, x)


@VERIFIERS.register("pgd")
class PgdVerifier(AttackVerifier):
    """PGD with the published verification settings: 40 steps of 0.035 half-widths.

    Attributes: those of :class:`expressive_losses.attacks.pgd.Pgd`.
    """

    steps: int = Field(default=40, ge=1)
    step_size: float = Field(default=0.035, gt=0)
    restarts: int = Field(default=1, ge=1)
    objective: Literal["ce", "margin"] = "ce"

    def make_attack(self) -> Attack:
        return Pgd(**self.model_dump())


@VERIFIERS.register("apgd")
class ApgdVerifier(AttackVerifier):
    """Auto-PGD on the cross-entropy (APGD-CE): sign steps of sizes that it adapts.

    Attributes: those of :class:`expressive_losses.attacks.apgd.Apgd`.
    """

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=1, ge=1)
    objective: Literal["ce", "margin"] = "ce"

    def make_attack(self) -> Attack:
        return Apgd(**self.model_dump())


@VERIFIERS.register("apgd-t")
class ApgdTVerifier(AttackVerifier):
    """Auto-PGD towards each of the likeliest wrong classes in turn (APGD-T).

    Attributes: those of :class:`expressive_losses.attacks.apgd.ApgdT`.
    """

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=1, ge=1)
    objective: Literal["dlr", "margin", "ce"] = "dlr"
    targets_of_each: int = Field(default=9, ge=1)

    def make_attack(self) -> Attack:
        return ApgdT(**self.model_dump())


@VERIFIERS.register("attack")
class AnyAttack(AttackVerifier):
    """Any registered attack.

    Attributes:
        attack: its name and fields, e.g. ``{name: mi_fgsm, steps: 100}``.
    """

    attack: dict[str, Any] = {"name": "mi_fgsm"}

    @field_validator("attack", mode="before")
    @classmethod
    def _complete(cls, spec: Any) -> dict[str, Any]:
        return ATTACKS.build(spec).spec()  # with its defaults written out: the ledger shall say what was run

    def make_attack(self) -> Attack:
        return ATTACKS.build(self.attack)
