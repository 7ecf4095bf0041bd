"""What some figures need from a trained network beside accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
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
from expressive_losses.types import BoundedBatch, Box, Clock, Progress

_BATCH = 100


@torch.no_grad()
def losses(network: BoundedNetwork, config: Config, data: Batches, now: Progress) -> dict[str, float]:
    """Return mean losses over images: clean, under the test attack, of IBP bounds, of the better of CROWN and IBP, and
    that of training, with its attack in its region (``eps.attack_factor``) and its weights at this point of the run.

    All other radii, and that of the bounds in the loss of training, are ``eps.target``. AdvIBP has no one loss, its
    weights come from gradients: in its place is the sum of its two, as in its logs.

    Source: paper "Expressive Losses", figure 3, and log_losses.py of its code.
    """
    totals: Counter[str] = Counter()
    generator = torch.Generator(data.device).manual_seed(0)
    for x, labels in data.in_order(_BATCH):
        box = Box.around(x, float(config.eps.target))
        x_adv = config.test_attack(network, box, labels, generator, start=x)
        ibp = network.margins(box, labels, "ibp")
        best = torch.maximum(ibp, network.margins(box, labels, "crown"))
        found = {
            "standard": F.cross_entropy(network(x), labels),
            "adversarial": F.cross_entropy(network(x_adv), labels),
            "own": _loss_of_training(network, config, x, labels, generator, now),
            "crown_or_ibp": verified_cross_entropy(best),
            "ibp": verified_cross_entropy(ibp),
        }
        totals.update({name: value.item() * len(labels) for name, value in found.items()})
    return {name: value / len(data) for name, value in totals.items()}


def _loss_of_training(
    network: BoundedNetwork, config: Config, x: Tensor, labels: Tensor, generator: torch.Generator, now: Progress
) -> Tensor:
    loss, eps = config.method, float(config.eps.target)
    needs, region = loss.needed(now), Box.around(x, eps)
    clean = network(x) if "clean" in needs else None
    adversarial, x_adv, attacked = None, None, None
    if "adv" in needs:
        attacked = Box.around(x, eps * config.eps.attack_factor)
        x_adv = config.attack(network, attacked, labels, generator, start=x)
        adversarial = network(x_adv)
        region = loss.region(region, attacked, x_adv, eps * config.eps.attack_factor)
    methods = [need for need in needs if need in TRAINING_METHODS]
    bounds = network.bounds_of(region, labels, methods, **loss.bound_options())
    margins = {method: found.margins for method, found in bounds.items()}
    return loss(BoundedBatch(labels, clean, adversarial, margins, loss.scheduled(now), x_adv, attacked))["loss"]


def end_of_training(config: Config, train: Batches) -> Progress:
    """Return the point of the run after its last step.

    Args:
        train: the training images.
    """
    clock = Clock(train.steps_per_epoch(config.training.batch_size), config.training.epochs)
    schedule, step = config.eps.schedule, clock.steps(1, "run")
    return Progress(schedule.fraction(step, clock), step, clock, schedule.end(clock))


MEASURES: dict[str, Callable[[BoundedNetwork, Config, Batches, Progress], dict[str, float]]] = {"losses": losses}


def measure(
    name: str, model: Path, device: torch.device, data_root: Path | None, trusted: Iterable[str] = ()
) -> dict[str, float]:
    """Measure a trained network on its held-out images; any method has all measures.

    Args:
        name: of the measure.
        model: checkpoint of the network.
        device: to compute on.
        data_root: folder of the data sets.
        trusted: import paths that the checkpoint may use.

    Raises:
        UserError: an unknown measure, or code that is not trusted.
    """
    if name not in MEASURES:
        raise UserError(f"measures: unknown '{name}'{suggest(name, MEASURES)}")
    payload = checkpoint.read(model)
    network = checkpoint.network_of(payload, str(model), trusted).to(device)
    config = Config.build(payload["config"], str(model))
    train, held_out, _ = load_data(config, data_root)
    now = end_of_training(config, Batches(train))
    return MEASURES[name](network, config, Batches(held_out, device=device), now)
