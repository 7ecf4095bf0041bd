"""Quick figures on held-out images: natural, under an attack, and by interval bounds."""

from __future__ import annotations

import torch

from expressive_losses.attacks.base import Attack
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.data.batches import Batches
from expressive_losses.precision import exact_float32
from expressive_losses.types import Box


@exact_float32()
@torch.no_grad()
def accuracies(
    network: BoundedNetwork,
    data: Batches,
    eps: float,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, float]:
    """Return fractions of all images: "natural" correct; "ibp" correct and proven by IBP; "adversarial" under
    ``attack``, if given.

    These are figures to watch a training by; verify.py makes the claims. In full float32, whatever the training is in.

    Args:
        eps: pixel units.
        seed: of the attack's random starts.
    """
    training = network.training
    network.eval()
    generator = torch.Generator(data.device).manual_seed(seed)
    counts = {"natural": 0, "ibp": 0} | ({"adversarial": 0} if attack else {})
    for x, labels in data.in_order(batch_size):
        box = Box.around(x, eps)
        natural = network(x).argmax(1) == labels
        counts["natural"] += natural.sum()
        counts["ibp"] += ((network.margins(box, labels, "ibp") > 0).all(1) & natural).sum()
        if attack:
            with network.frozen() as logits:
                x_adv = attack(logits, box, labels, generator, start=x)
            counts["adversarial"] += (natural & (network(x_adv).argmax(1) == labels)).sum()
    network.train(training)
    return {name: int(count) / len(data) for name, count in counts.items()}
