"""A config in words: what tables say that a run had in place of the paper's setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expressive_losses.config import Config
from expressive_losses.registry import Plugin


def settings(config: Config) -> list[str]:
    """Return in words what figures depend on beside the method."""
    training, eps, ramp = config.training, config.eps, config.eps.schedule.model_dump()
    return [
        f"data {config.data.name}",
        f"network {config.model.name}",
        f"eps {eps.target.text}",
        f"trained at {eps.train_multiplier:g} eps",
        f"attacked at {eps.attack_factor:g} of that",
        f"{training.epochs} epochs",
        f"batches of {training.batch_size}",
        f"{config.optimizer.name} at {getattr(config.optimizer, 'lr', 'its own rate')}",
        f"lr schedule {_brief(config.lr_schedule)}",
        *(f"{name} {value}" for name, value in _in_words(ramp).items()),
        f"L1 {training.l1:g}",
        f"clipping at {training.clip_norm}",
        f"BatchNorm {training.bn_statistics}",
        f"initialisation {training.initialize}",
        f"regulariser {training.shi.weight:g}",
        f"training attack {_brief(config.attack) if 'adv' in config.method.needs else 'none'}",
    ]


def _brief(plugin: Plugin) -> str:
    return plain({"name": plugin.name, **plugin.model_dump(exclude_defaults=True)})


def _in_words(ramp: Mapping[str, Any]) -> dict[str, str]:
    """Return warm-ups and ramp; a schedule without them has the radius from the first step on."""
    unit = {"run": "of the run"}.get(unit := ramp.get("unit", "epochs"), unit)
    names = {"warmup": "warm-up", "attack_warmup": "attacked warm-up", "length": "ramp"}
    return {word: f"{plain(ramp.get(key, 0))} {unit}" for key, word in names.items()}


def plain(value: Any) -> str:
    """Return a value, or a plug-in as a mapping, in words."""
    if isinstance(value, Mapping):
        return " ".join([str(value["name"]), *(f"{key} {field}" for key, field in value.items() if key != "name")])
    return f"{value:g}" if isinstance(value, float) else str(value)
