"""What some figures need from a trained network beside accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.data.batches import Batches
from expressive_losses.errors import UserError
from expressive_losses.experiment import load_data
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import suggest
from expressive_losses.types import BoundedBatch, Box

_BATCH = 100


@torch.no_grad()
def losses(network: BoundedNetwork, config: Config, data: Batches) -> dict[str, float]:
    """Return mean losses over images: clean, under the test attack, of IBP bounds, of the better of CROWN and IBP, and
    that of training, whose alpha mixes the second with the third.

    Source: paper "Expressive Losses", figure 3.
    """
    totals: Counter[str] = Counter()
    generator = torch.Generator(data.device).manual_seed(0)
    for x, labels in data.in_order(_BATCH):
        box = Box.around(x, float(config.eps.target))
        x_adv = config.test_attack(network, box, labels, generator, start=x)
        clean, adversarial = network(x), network(x_adv)
        ibp = network.margins(box, labels, "ibp")
        best = torch.maximum(ibp, network.margins(box, labels, "crown"))
        own = config.method(BoundedBatch(labels, clean, adversarial, {"ibp": ibp}))["loss"]
        found = {
            "standard": F.cross_entropy(clean, labels),
            "adversarial": F.cross_entropy(adversarial, labels),
            "own": own,
            "crown_or_ibp": verified_cross_entropy(best),
            "ibp": verified_cross_entropy(ibp),
        }
        totals.update({name: value.item() * len(labels) for name, value in found.items()})
    return {name: value / len(data) for name, value in totals.items()}


MEASURES: dict[str, Callable[[BoundedNetwork, Config, Batches], dict[str, float]]] = {"losses": losses}


def measure(name: str, model: Path, device: torch.device, data_root: Path | None) -> dict[str, float]:
    """Measure a trained network on its held-out images.

    Raises:
        UserError: an unknown measure.
    """
    if name not in MEASURES:
        raise UserError(f"measures: unknown '{name}'{suggest(name, MEASURES)}")
    payload = checkpoint.read(model)
    config = Config.build(payload["config"], str(model))
    network = checkpoint.network_of(payload, str(model)).to(device)
    held_out = load_data(config, data_root)[1]
    return MEASURES[name](network, config, Batches(held_out, device=device))
