"""What a run has in place of the paper's setting, in words: the difference of two configs and of two verifications.

Every field that differs is said; what has no words of its own is named by its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from expressive_losses.config import Config, Radius
from expressive_losses.experiments.spec import Verification
from expressive_losses.registry import Plugin

#: Fields that change no figure of a table, or that a page says by itself (seeds).
SILENT = frozenset(
    {"paper", "training.seed", "training.evaluate_every", "training.checkpoint_every", "training.capture"}
)
#: Fields that change nothing where neither method trains on attacks.
_OF_ATTACKS = ("attack", "eps.attack_factor", "eps.schedule.attack_warmup")
_OF_RAMPS = ("length", "warmup", "attack_warmup", "unit")


def replaced(ours: Config, paper: Config, evaluated: bool = False) -> list[str]:
    """Return in words what ``ours`` has in place of what ``paper`` has.

    Args:
        evaluated: whether figures of training's own evaluation count, which ``test_attack`` attacks.
    """
    attacked = any("adv" in config.method.needs for config in (ours, paper))
    silent = (*(() if evaluated else ("test_attack",)), *(() if attacked else _OF_ATTACKS))
    found = sorted(differing(ours, paper), key=lambda pair: pair[0].partition(".")[0] not in ("data", "model"))
    return list(dict.fromkeys(_in_words(key, value, ours, paper) for key, value in found if not _within(key, silent)))


def replaced_in_verification(ours: Verification, paper: Verification) -> list[str]:
    """Return in words what a verification asks in place of what the paper's asks.

    The order of the stages is left out: what one has verified no other attacks with success.
    """
    found = []
    if ours.eps != paper.eps:
        found.append(f"tested at eps {ours.eps or 'of training'}")
    if ours.split != paper.split:
        found.append(f"{ours.split} images")
    if ours.first != paper.first:
        found.append("all images" if ours.first is None else f"first {ours.first} images")
    mine, theirs = ours.stages, paper.stages
    if set(mine) != set(theirs):
        found.append(f"verified by {', '.join(mine)}")
    for name in [name for name in mine if name in theirs]:
        found += [
            _STAGES.get(f"{name}.{key}", f"{name} {_spaced(key)} {{}}").format(plain(value))
            for key, value in mine[name].items()
            if value != theirs[name][key]
        ]
    return sorted(found, key=lambda text: not text.endswith("images"))


def named(config: Config) -> dict[str, str]:
    """Return data set, radius and network, as labels name them."""
    return {"data": config.data.name, "eps": config.eps.target.text, "network": config.model.name}


def differing(ours: BaseModel, theirs: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each field of ``ours`` that differs, with its path; a plug-in of another name as a whole."""
    for name in type(ours).model_fields:
        key, mine, other = f"{path}{name}", getattr(ours, name), getattr(theirs, name)
        if mine == other or key in SILENT:
            continue
        if isinstance(mine, BaseModel) and type(mine) is type(other):
            yield from differing(mine, other, f"{key}.")
        else:
            yield key, mine


def plain(value: Any) -> str:
    """Return a value, or a plug-in with what of it is not by default, in words."""
    if isinstance(value, Plugin):
        return plain({"name": value.name, **value.model_dump(exclude_defaults=True)})
    if isinstance(value, Mapping):
        return " ".join(
            [str(value["name"]), *(f"{key} {plain(field)}" for key, field in value.items() if key != "name")]
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, Radius):
        return value.text
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def _in_words(key: str, value: Any, ours: Config, paper: Config) -> str:
    """Return a field in words; those of a schedule or an attack are said together, each alone says little."""
    for whole, said in _TOGETHER.items():
        if _within(key, (whole,)):
            return said(ours, paper)
    return _FIELDS.get(key, f"{_spaced(key)} {{}}").format(plain(value))


def _spaced(key: str) -> str:
    return key.replace(".", " ").replace("_", " ")


def _ramp(ours: Config, paper: Config) -> str:
    """Return "smoothed ramp over 4 epochs without warm-up"; a schedule without ramp by its name."""
    schedule = ours.eps.schedule.spec()
    name, unit = schedule["name"], schedule.get("unit", "epochs")
    rest = _rest(_notable(ours.eps.schedule, paper.eps.schedule, without=_OF_RAMPS))
    if "length" not in schedule:
        return f"{name} radius{rest}"
    length, warmup, attacked, _ = (schedule[key] for key in _OF_RAMPS)
    before = f"after a warm-up of {_duration(warmup, unit)}" if warmup else "without warm-up"
    attacks = f", {_duration(attacked, unit)} of it attacked" if attacked else ""
    return f"{name} ramp over {_duration(length, unit)} {before}{attacks}{rest}"


def _learning_rate(ours: Config, paper: Config) -> str:
    """Return "decay times 0.2 at epochs 6 and 7"; a schedule without milestones by its name and fields."""
    schedule = ours.lr_schedule.spec()
    name, unit = schedule.pop("name"), schedule.pop("unit", "epochs")
    if "milestones" not in schedule:
        return f"{name} learning rate{_rest({**schedule, 'unit': unit} if schedule else schedule)}"
    at = _listed(schedule["milestones"])
    return f"decay times {schedule['gamma']:g} at {f'{at} of the run' if unit == 'run' else f'{unit} {at}'}"


def _listed(numbers: Sequence[float]) -> str:
    *first, last = map(plain, numbers) if numbers else ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def _duration(number: float, unit: str) -> str:
    unit = "of the run" if unit == "run" else unit
    return f"{number:g} {unit.removesuffix('s') if number == 1 else unit}"


def _attack(kind: str, ours: Plugin, paper: Plugin) -> str:
    return f"{kind} {ours.name}{_rest(_notable(ours, paper, always=('steps', 'step_size')))}"


def _notable(ours: Plugin, paper: Plugin, always: Sequence[str] = (), without: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return the fields of a plug-in that are not by default or not the paper's."""
    fields, default = ours.spec(), ours.model_dump(exclude_defaults=True)
    theirs = paper.spec() if paper.name == ours.name else fields
    return {
        key: value
        for key, value in fields.items()
        if key not in ("name", *without) and (key in always or key in default or value != theirs[key])
    }


def _rest(fields: Mapping[str, Any]) -> str:
    said = ", ".join(f"{_spaced(key)} {plain(value)}" for key, value in fields.items())
    return f" ({said})" if said else ""


#: What is said as one.
_TOGETHER: dict[str, Callable[[Config, Config], str]] = {
    "eps.schedule": _ramp,
    "lr_schedule": _learning_rate,
    "attack": lambda ours, paper: _attack("training attack", ours.attack, paper.attack),
    "test_attack": lambda ours, paper: _attack("test attack", ours.test_attack, paper.test_attack),
    "training.epochs": lambda ours, paper: _duration(ours.training.epochs, "epochs"),
}

_FIELDS = {
    "data": "data {}",
    "model": "network {}",
    "eps.target": "eps {}",
    "eps.train_multiplier": "trained at {} times eps",
    "eps.attack_factor": "training attacks at {} times the trained radius",
    "optimizer.lr": "learning rate {}",
    "training.batch_size": "batches of {}",
    "training.l1": "L1 {}",
    "training.clip_norm": "gradients clipped at {}",
    "training.bn_statistics": "BatchNorm statistics {}",
    "training.initialize": "initialisation {}",
    "training.shi.weight": "regulariser of Shi et al. at {}",
}

_STAGES = {
    "pgd.steps": "PGD of {} steps",
    "pgd.step_size": "PGD in steps of {} eps",
    "pgd.restarts": "random starts of PGD: {}",
    "alpha-crown.iterations": "{} iterations of alpha-CROWN",
    "bab.timeout": "{} s an image in branch-and-bound",
    "mip.timeout": "{} s an image for the MIP solver",
}
