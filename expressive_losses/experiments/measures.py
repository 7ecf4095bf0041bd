"""What some figures need from a trained network beside accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.bounds import TRAINING_METHODS, BoundedNetwork
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
    that of training, with its attack in its region (``eps.attack_factor``).

    All other radii, and that of the bounds in the loss of training, are ``eps.target``.

    Source: paper "Expressive Losses", figure 3, and log_losses.py of its code.
    """
    totals: Counter[str] = Counter()
    generator = torch.Generator(data.device).manual_seed(0)
    for x, labels in data.in_order(_BATCH):
        box = Box.around(x, float(config.eps.target))
        x_adv = config.test_attack(network, box, labels, generator, start=x)
        clean, adversarial = network(x), network(x_adv)
        ibp = network.margins(box, labels, "ibp")
        best = torch.maximum(ibp, network.margins(box, labels, "crown"))
        found = {
            "standard": F.cross_entropy(clean, labels),
            "adversarial": F.cross_entropy(adversarial, labels),
            "own": _loss_of_training(network, config, x, labels, generator),
            "crown_or_ibp": verified_cross_entropy(best),
            "ibp": verified_cross_entropy(ibp),
        }
        totals.update({name: value.item() * len(labels) for name, value in found.items()})
    return {name: value / len(data) for name, value in totals.items()}


def _loss_of_training(
    network: BoundedNetwork, config: Config, x: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    loss, eps = config.method, float(config.eps.target)
    box, attacked = Box.around(x, eps), Box.around(x, eps * config.eps.attack_factor)
    x_adv = config.attack(network, attacked, labels, generator, start=x)
    region = loss.region(box, attacked, x_adv, eps * config.eps.attack_factor)
    methods = [need for need in loss.needs if need in TRAINING_METHODS]
    bounds = network.bounds_of(region, labels, methods, **loss.bound_options())
    margins = {method: found.margins for method, found in bounds.items()}
    return loss(BoundedBatch(labels, network(x), network(x_adv), margins))["loss"]


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
