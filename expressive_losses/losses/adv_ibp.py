"""AdvIBP: adversarial and IBP loss as two objectives, with weights from moments of their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.distributed import add_gradients, summed_over_processes
from expressive_losses.losses.base import REGULARIZERS, Loss, SearchSpace, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Box, Progress

Memory = dict[str, Tensor]


@LOSSES.register("adv_ibp")
class AdvIBP(Loss):
    """kappa_adv L_adv + kappa_ibp L_ibp + kappa_reg L_ibp^2, the kappas from moments of both gradients (Fan and Li).

    m are moving averages of the gradients of the steps before, v those of their norms (not squared), both with
    bias correction. Where the gradients agree, <m_adv, m_ibp> > 0, the step goes along their bisector; where
    not, one is projected to be perpendicular to the other: the adversarial one has priority while the attack
    is strong, FOSC <= c_t, else the IBP one. c_t is c_max during the ramp and then falls linearly to 0. The first
    step has no moments: kappas 1, 1, 0. Warm-up on clean images, then on attacked ones: ``warmup`` and
    ``attack_warmup`` of the eps schedule.

    Source: paper "Adversarial Training and Provable Robustness: A Tale of Two Objectives", algorithms 1 and 2.
    NOTE: its text gives no values for beta1, beta2, c_max and T' (``fosc_epochs``): these are our choice.
    """

    needs: ClassVar[tuple[str, ...]] = ("adv", "x_adv", "ibp")
    separable: ClassVar[bool] = False
    search_space: ClassVar[SearchSpace] = {"fosc_max": {"low": 1e-3, "high": 1.0, "log": True}}
    defaults: ClassVar[Mapping[str, Any]] = {"attack": {"name": "fgsm", "step_size": 1.25}}
    weights: Literal["moments", "ones"] = Field("moments", description="ones: kappa 1, 1, 0, baseline of figure 2")
    bisector: Literal["printed", "normalized"] = Field(
        "printed", description="direction projected on: m_adv + m_ibp as printed, or the text's unit bisector"
    )
    projection: Literal["norm", "moment"] = Field(
        "norm", description="what a projection divides by: v^2 as printed, or the squared norm of m"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradients' averages")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the norms' averages")
    fosc_max: float = Field(0.1, ge=0, description="c_max, in loss units")
    fosc_epochs: float | None = Field(None, gt=0, description="T', epochs from c_max to 0; null: all after the ramp")

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return c_t, the threshold of FOSC."""
        return {"threshold": self.threshold(now)}

    def margins(self, batch: BoundedBatch) -> Tensor:
        """Return the margins whose loss is L_ibp, (B, K-1)."""
        return batch.margins["ibp"]

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the two objectives and their sum, which is logged; :meth:`backward` weighs them."""
        adversarial = F.cross_entropy(batch.adversarial, batch.labels)
        verified = verified_cross_entropy(self.margins(batch))
        return {"loss": adversarial + verified, "adv_loss": adversarial, "ibp_loss": verified}

    def memory(self, parameters: Sequence[Tensor]) -> Memory:
        """Return zero moments: "m_adv", "m_ibp" (flat), "v_adv", "v_ibp", "t" (scalars)."""
        flat = torch.cat([torch.zeros_like(p).reshape(-1) for p in parameters])
        moments = {"m_adv": flat, "m_ibp": flat.clone()}
        return moments | {name: flat.new_zeros(()) for name in ("v_adv", "v_ibp", "t")}

    def backward(
        self, batch: BoundedBatch, terms: dict[str, Tensor], parameters: Sequence[Tensor], memory: Memory
    ) -> dict[str, Tensor]:
        """Set ``.grad`` to the weighed gradients plus the regularisers' one; return kappas, FOSC and case."""
        if self.weights == "ones":
            return super().backward(batch, terms, parameters, memory)
        added = [terms[name] for name in REGULARIZERS if name in terms]
        gradients = _gradients(terms["adv_loss"], [*parameters, batch.x_adv], keep=True)
        adversarial, to_input = gradients[:-1], gradients[-1]
        # the loss is a mean over the batch, FOSC one value a sample
        fosc = first_order_stationarity(to_input * len(batch.labels), batch.x_adv, batch.attacked)
        fosc = summed_over_processes(fosc.sum()) / len(batch.labels)
        with torch.no_grad():
            kappa, case = self.kappas(memory, fosc, batch.scheduled["threshold"])
        verified = _gradients(terms["ibp_loss"], parameters, keep=bool(added))
        rest = _gradients(sum(added), parameters) if added else [0.0] * len(verified)
        for gradients in (adversarial, verified, rest if added else ()):
            add_gradients(gradients)
        on_verified = kappa[1] + 2 * kappa[2] * terms["ibp_loss"].detach()  # d/dL (k L + r L^2)
        for parameter, a, v, r in zip(parameters, adversarial, verified, rest, strict=True):
            # laid out as the parameter, which fused optimisers take for granted: gradients may have channels last
            parameter.grad = torch.empty_like(parameter).copy_(kappa[0] * a + on_verified * v + r)
        self.remember(memory, adversarial, verified)
        names = ("kappa_adv", "kappa_ibp", "kappa_reg", "agree", "prefer_adv", "prefer_ibp")
        return {"fosc": fosc, **dict(zip(names, [*kappa, *case], strict=True))}

    def threshold(self, now: Progress) -> float:
        """Return c_t = clip(c_max - (t - R) c_max / T', 0, c_max); t - R is the epochs since the end of the ramp."""
        clock = now.clock
        epochs = (now.step - now.ramp_end) / clock.steps_per_epoch
        length = self.fosc_epochs or max(clock.epochs - now.ramp_end / clock.steps_per_epoch, 1e-9)
        return min(max(self.fosc_max * (1 - epochs / length), 0.0), self.fosc_max)

    def kappas(self, memory: Memory, fosc: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (adv, ibp, reg) and the case as three 0/1 values (agree, prefer adv, prefer ibp).

        All on the device: which case it is stays unknown to the host, which need not wait.

        Args:
            memory: moments of the steps before this one.
            fosc: mean over the batch.
            threshold: c_t.

        Source: algorithm 1.
        """
        m_adv, m_ibp, v_adv, v_ibp = self._corrected(memory)
        product = m_adv @ m_ibp
        one, zero = torch.ones_like(product), torch.zeros_like(product)
        gamma = self._gamma(m_adv, m_ibp, v_adv, v_ibp)
        square_adv, square_ibp = (v_adv**2, v_ibp**2) if self.projection == "norm" else (m_adv @ m_adv, m_ibp @ m_ibp)
        agree = torch.stack([gamma / v_adv, gamma / v_ibp, zero])
        prefer_adv = torch.stack([one, -product / _positive(square_ibp), zero])
        prefer_ibp = torch.stack([-product / _positive(square_adv), one, one / 2])
        strong = fosc <= threshold
        kappa = torch.where(product > 0, agree, torch.where(strong, prefer_adv, prefer_ibp))
        case = torch.stack([product > 0, (product <= 0) & strong, (product <= 0) & ~strong]).to(kappa)
        begun = memory["t"] > 0
        return torch.where(begun, kappa, torch.stack([one, one, zero])), case * begun

    def remember(self, memory: Memory, adversarial: Sequence[Tensor], verified: Sequence[Tensor]) -> None:
        """Take this step's gradients into the moments: m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) |g|."""
        for name, gradients in (("adv", adversarial), ("ibp", verified)):
            flat = torch.cat([g.reshape(-1) for g in gradients])
            memory[f"m_{name}"].lerp_(flat, 1 - self.beta1)
            memory[f"v_{name}"].lerp_(flat.norm(), 1 - self.beta2)
        memory["t"] += 1

    def _corrected(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the moments with bias correction; the norms never 0."""
        t = memory["t"].clamp(min=1)
        first, second = (1.0 if beta == 0 else -torch.expm1(t * math.log(beta)) for beta in (self.beta1, self.beta2))
        v_adv, v_ibp = (_positive(memory[name] / second) for name in ("v_adv", "v_ibp"))
        return memory["m_adv"] / first, memory["m_ibp"] / first, v_adv, v_ibp

    def _gamma(self, m_adv: Tensor, m_ibp: Tensor, v_adv: Tensor, v_ibp: Tensor) -> Tensor:
        """Return half of <m_adv + m_ibp, d> / |d|; d = (m_adv + m_ibp) / |v_adv + v_ibp|, or the unit bisector."""
        total = m_adv + m_ibp
        if self.bisector == "printed":
            direction = total / (v_adv + v_ibp)
        else:
            direction = m_adv / v_adv + m_ibp / v_ibp
        return (total @ direction) / _positive(direction.norm()) / 2


def first_order_stationarity(gradient: Tensor, x: Tensor, box: Box) -> Tensor:
    """Return FOSC of each sample, max over x' in the box of <x' - x, gradient>: >= 0, and 0 at a constrained maximum.

    Args:
        gradient: of each sample's loss with respect to ``x``, (B, *image).
        x: points of the box, (B, *image).

    Source: Wang et al. (2019), "On the convergence and robustness of adversarial training"; paper "A Tale of Two
        Objectives", equation (6).
    """
    up, down = gradient.clamp(min=0) * (box.upper - x), (-gradient).clamp(min=0) * (x - box.lower)
    return (up + down).detach().flatten(1).sum(1)


def _gradients(term: Tensor, inputs: Sequence[Tensor], keep: bool = False) -> tuple[Tensor, ...]:
    """Return the gradient with respect to each input; 0 where the term does not depend on it."""
    return torch.autograd.grad(term, inputs, retain_graph=keep, allow_unused=True, materialize_grads=True)


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)
