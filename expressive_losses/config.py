"""The whole of an experiment as one frozen value, read from YAML and checked at the edge.

A file may ``extends:`` another (relative path); mappings merge key by key, except that a plug-in with another ``name``
replaces the one it extends. ``--set a.b=c`` overrides one key. Unknown keys, wrong types and values out of
range are errors that name the key.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, Field, PlainSerializer, PlainValidator, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from expressive_losses import registry
from expressive_losses.errors import UserError
from expressive_losses.precision import Precision
from expressive_losses.registry import explain, plugin_field

#: Counted up when the same config trains something else than before: then rows and cells of before are not its.
MEANING = 1


class Radius(float):
    """A radius in pixel units that remembers how it was written: ``8/255`` stays ``8/255`` in every file."""

    text: str

    @classmethod
    def parse(cls, value: Any) -> Radius:
        """Read a number or a fraction such as ``8/255``, as somebody has typed it.

        Raises:
            ValueError: not a number, or outside [0, 1]; 1 written so, which is meant for 1/255 more often than not.
        """
        radius = cls.recorded(value)
        if radius.text == "1":
            raise ValueError("1 is the whole range of pixels; did you mean 1/255? If not, say 1.0")
        return radius

    @classmethod
    def recorded(cls, value: Any) -> Radius:
        """Read a radius that a file has of an earlier run, which asked for it; there 1 is 1.

        Raises:
            ValueError: not a number, or outside [0, 1].
        """
        text = value.text if isinstance(value, Radius) else str(value).strip()
        numerator, slash, denominator = text.partition("/")
        try:
            number = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a number or a fraction such as 8/255, got {text!r}") from None
        if not (math.isfinite(number) and 0 <= number <= 1):
            hint = f"; did you mean {text}/255?" if not slash and 1 < number <= 255 else ""
            raise ValueError(f"radii are in pixel units, from 0 to 1, got {text}{hint}")
        radius = cls(number)
        radius.text = text
        return radius

    def __reduce__(self):
        return (Radius.recorded, (self.text,))


RadiusField = Annotated[Radius, PlainValidator(Radius.parse), PlainSerializer(lambda radius: radius.text)]


class Section(registry.Checked):
    """Base of every part of a config."""


class EpsConfig(Section):
    """The three radii: evaluation uses ``target``, training bounds over ``target * train_multiplier`` (and along the
    schedule), training attacks over that times ``attack_factor``.
    """

    target: RadiusField = Field(Radius.parse("0.1"), validate_default=True)
    train_multiplier: float = Field(1.0, gt=0, description="bounded radius in training / target")
    attack_factor: float = Field(1.0, gt=0, description="attacked radius / bounded radius in training")
    schedule: plugin_field(registry.EPS_SCHEDULES) = Field({"name": "smoothed"}, validate_default=True)


class ShiConfig(Section):
    """Shi et al.'s regulariser; weight 0 switches it off."""

    weight: float = Field(0.5, ge=0, description="lambda")
    tol: float = Field(0.5, gt=0)


class AveragingConfig(Section):
    """Averages of the weights: evaluated, and saved as the trained network, in place of the last ones."""

    kind: Literal["none", "ema", "swa"] = "none"
    start: float = Field(0.0, ge=0, description="epochs done when averaging begins")
    decay: float = Field(0.999, ge=0, lt=1, description="of the exponential average, per step")


class TrainingConfig(Section):
    """The loop."""

    epochs: int = Field(60, ge=1)
    batch_size: int = Field(128, ge=2)
    seed: int = Field(100, ge=0, lt=2**63)
    initialize: Literal["shi", "default"] = "shi"
    clip_norm: float | None = Field(10.0, gt=0, description="gradient norm; null for none")
    l1: float = Field(0.0, ge=0, description="weight of sum |W| over convolution and linear weights")
    shi: ShiConfig = ShiConfig()
    bn_statistics: Literal["adversarial", "clean", "clean_frozen"] = "adversarial"
    bn_refresh: bool = Field(
        False, description="recompute population statistics over the training set after each epoch"
    )
    average: AveragingConfig = AveragingConfig()
    accumulate: int = Field(1, ge=1, description="parts that a batch is worked off in, to save memory")
    precision: Precision = Field("float32", description="of products on a GPU, in training only; tf32 is faster")
    capture: Literal["auto", "always", "never"] = Field(
        "auto", description="repeat updates as CUDA graphs; auto: where that can be done"
    )
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations")

    @model_validator(mode="after")
    def _consistent(self):
        if self.average.kind != "none" and self.average.start >= self.epochs:
            raise ValueError(f"average: start {self.average.start:g} is not before the end ({self.epochs} epochs)")
        return self


class Config(Section):
    """One experiment."""

    method: plugin_field(registry.LOSSES) = Field({"name": "mtl_ibp"}, validate_default=True)
    attack: plugin_field(registry.ATTACKS) = Field(
        {"name": "pgd", "steps": 1, "step_size": 10.0}, validate_default=True
    )
    test_attack: plugin_field(registry.ATTACKS) = Field(
        {"name": "pgd", "steps": 40, "step_size": 0.1}, validate_default=True
    )
    eps: EpsConfig = EpsConfig()
    data: plugin_field(registry.DATASETS) = Field({"name": "digits"}, validate_default=True)
    validation: float = Field(
        0.0, ge=0, description="held out of the training set: a share below 1, or a number of images"
    )
    model: plugin_field(registry.MODELS) = Field({"name": "cnn_tiny"}, validate_default=True)
    optimizer: plugin_field(registry.OPTIMIZERS) = Field({"name": "adam"}, validate_default=True)
    lr_schedule: plugin_field(registry.LR_SCHEDULES) = Field({"name": "constant"}, validate_default=True)
    training: TrainingConfig = TrainingConfig()
    plugins: tuple[str, ...] = Field((), description="modules imported first, whose plug-ins then have names")
    paper: dict[str, Any] | None = Field(None, description="the published row that this config repeats")

    @model_validator(mode="after")
    def _consistent(self):
        if self.validation > 1 and self.validation != int(self.validation):
            raise ValueError(f"validation: expected a share below 1 or a number of images, got {self.validation:g}")
        self.lr_schedule.check(self.training.epochs)
        if self.training.accumulate > 1 and not self.method.separable:
            raise ValueError(f"training.accumulate: the loss of '{self.method.name}' is no mean over the batch")
        if float(self.eps.target) * self.eps.train_multiplier > 1:
            raise ValueError("eps: target * train_multiplier is above 1, the whole pixel range")
        return self

    def resolved(self) -> dict[str, Any]:
        """Return plain values (numbers, text, lists, mappings) from which an equal config is built."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Return a hash of what is asked for, without the published figures.

        Fields at their defaults do not count: a field that is new in a release leaves it as it was. Where a release
        changes what the same config means (a default, the mathematics of training), :data:`MEANING` has to change.
        """
        asked = json.dumps([MEANING, {**_asked(self), "paper": None}], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "config", notes: Mapping[str, str] = {}) -> Config:
        """Check plain values.

        Args:
            notes: by key, what a message about it ends with.

        Raises:
            UserError: one line that names the source and the key.
        """
        plugins = values.get("plugins")
        for module in plugins if isinstance(plugins, list | tuple) else ():
            registry.import_module(str(module))
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            key = str(next(iter(error.errors()[0]["loc"]), ""))
            raise UserError(f"{source}: {explain(error, cls)}{notes.get(key, '')}") from None


def differences(config: Config, values: Mapping[str, Any]) -> list[str]:
    """Return the keys in which the plain values of another config, perhaps an older release's, differ from a config.

    They are compared as they are: to build them could import code. A field that they lack had what is its default now.
    """
    theirs = merge(Config().resolved(), values)
    ours = config.resolved()
    return [key for key in ours if not _agrees(getattr(config, key), ours[key], theirs.get(key))]


def _agrees(value: Any, ours: Any, theirs: Any) -> bool:
    """Return whether plain values are those of ``value``, which ``ours`` are; .2 is the radius 0.2."""
    if isinstance(value, Radius):
        try:
            return value == Radius.recorded(theirs)
        except ValueError:
            return False
    if not (isinstance(value, BaseModel) and isinstance(theirs, Mapping)):
        return ours == theirs
    fields = type(value).model_fields
    return theirs.keys() <= ours.keys() and all(
        _agrees(getattr(value, key), own, theirs[key])
        if key in theirs
        else key in fields and getattr(value, key) == fields[key].get_default(call_default_factory=True)
        for key, own in ours.items()
    )


def _asked(value: Any) -> Any:
    """Return plain values, of models only the fields that are not at their defaults, and names of plug-ins."""
    if isinstance(value, Radius):
        return value.text
    if isinstance(value, Mapping):
        return {key: _asked(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_asked(own) for own in value]
    if not isinstance(value, BaseModel):
        return to_jsonable_python(value)
    fields = {key: getattr(value, key) for key in type(value).model_fields}
    other = {
        key: own
        for key, own in fields.items()
        if own != type(value).model_fields[key].get_default(call_default_factory=True)
    }
    name = {"name": value.name} if isinstance(value, registry.Plugin) else {}
    return {**name, **{key: _asked(own) for key, own in other.items()}}


def load(path: Path | None, overrides: Iterable[Mapping[str, Any]] = ()) -> Config:
    """Read a config file, apply the overrides in order, check the result.

    What it does not say is as the method has it, else as the data set has it, else as :class:`Config`.

    Raises:
        UserError: unreadable file, bad YAML, cyclic ``extends``, unknown key or bad value.
    """
    return resolve(read(path), overrides, str(path)) if path else resolve({}, overrides)


def resolve(values: Mapping[str, Any], overrides: Iterable[Mapping[str, Any]] = (), source: str = "config") -> Config:
    """Do what :func:`load` does with the mapping of a file, which messages call ``source``."""
    for override in overrides:
        values = merge(values, override)
    given = {key: values[key] for key in ("data", "plugins") if key in values}
    data = Config.build(merge({"data": Config().data.spec()}, given), source).data
    defaults = merge(Config().resolved(), data.defaults)
    given = {key: values[key] for key in ("method", "plugins") if key in values}
    method = Config.build(merge({"method": defaults["method"]}, given), source).method
    return Config.build(merge(merge(defaults, method.defaults), values), source, _choices(method, values))


def _choices(method: registry.Plugin, values: Mapping[str, Any]) -> dict[str, str]:
    """Return, by key, which plug-in the method chose, where the config names none itself."""
    notes = {}
    for key, default in method.defaults.items():
        chosen, given = _as_mapping(default), values.get(key)
        if isinstance(chosen, Mapping) and isinstance(given, Mapping) and "name" in chosen.keys() - given.keys():
            name = chosen["name"]
            notes[key] = f" ('{name}' is the choice of method '{method.name}'; {key}.name=... takes another)"
    return notes


class _Loader(yaml.SafeLoader):
    """Plain values only, a key that is there twice is an error, and numbers are what everybody reads.

    PyYAML takes 5e-4 for a text, 010 for 8 and 1:30 for 90.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":int", ":float"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str = "text") -> Any:
    """Return the value of a YAML document, which messages call ``source``.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not valid, or no plain value, or too deep.
    """
    loader = _Loader(text)
    loader.name = source
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@lru_cache(maxsize=1024)
def _document(text: str, source: str) -> Any:
    """Return the value of a document, read once: hundreds of configs extend the same few, and YAML is slow to read."""
    return parse_yaml(text, source)


def read(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping of a YAML file with what it ``extends`` merged underneath."""
    path = Path(path)
    if path.resolve() in _seen:
        raise UserError(f"{path}: 'extends' goes in a circle")
    try:
        values = copy.deepcopy(_document(path.read_text(encoding="utf-8"), path.name))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends: expected a path, got {base!r}")
    return merge(read(path.parent / base, (*_seen, path.resolve())), values)


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``override`` on top, key by key; a plug-in of another name replaces the whole plug-in."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, Mapping) or isinstance(value, Mapping):
            old, value = _as_mapping(old), _as_mapping(value)
            if _same_plugin(old, value):
                value = merge(old, value)
        merged[key] = value
    return merged


def _same_plugin(old: Any, new: Any) -> bool:
    mappings = isinstance(old, Mapping) and isinstance(new, Mapping)
    return mappings and new.get("name", old.get("name")) == old.get("name")


def _as_mapping(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn ``a.b=c`` into ``{"a": {"b": c}}``; the value is read as YAML.

    Raises:
        UserError: when there is no key or no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip(".") or "" in key.split("."):
        raise UserError(f"--set {text}: expected key=value, for example training.epochs=10")
    try:
        nested: Any = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {text}: the value is not valid YAML") from None
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested
