"""Plug-ins by name: losses, attacks, models, data sets, schedules, optimisers and verifiers.

A plug-in is a frozen pydantic model: its fields are its hyper-parameters, its docstring's first line is its
help. A config names it and sets its fields: ``{name: mtl_ibp, alpha: 0.2}``. A file dropped into the registry's
package is found by itself.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from expressive_losses.errors import UserError


class Checked(BaseModel):
    """Base of whatever is read from a config: immutable, no unknown keys, no NaN, no truth value for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes, no, on and off, which YAML reads as truth values, and pydantic would take for 1 and 0."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            kinds = [kind, *get_args(kind)]
            if bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


class Plugin(Checked):
    """Base of everything registered: unknown or mistyped fields are errors."""

    name: ClassVar[str] = ""

    def spec(self) -> dict[str, Any]:
        """Return the mapping that builds an equal plug-in: ``REGISTRY.build(plugin.spec()) == plugin``."""
        return {"name": self.name, **self.model_dump(mode="json")}


class Registry:
    """Named plug-ins of one kind, discovered from one package.

    Args:
        kind: what an entry is called in messages, e.g. "loss".
        package: the package (or module) whose import registers the entries.
        adapter: the entry (fields ``path``, ``kwargs``) that wraps any callable at an import path
            ``package.module:name``; without one, import paths must lead to a Plugin class.
    """

    def __init__(self, kind: str, package: str, adapter: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._adapter = adapter
        self._entries: dict[str, type[Plugin]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[type[Plugin]], type[Plugin]]:
        """Class decorator that enters a plug-in under ``name``.

        Raises:
            UserError: when another class has the name already.
        """

        def enter(cls: type[Plugin]) -> type[Plugin]:
            known = self._entries.get(name)
            if known is not None and not _is_the_same(known, cls):
                raise UserError(f"{self.kind} '{name}' is registered twice: by {known.__module__} and {cls.__module__}")
            cls.name = name
            self._entries[name] = cls
            return cls

        return enter

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        self._discover()
        return sorted(self._entries)

    def help(self, name: str) -> str:
        """Return the first paragraph of the plug-in's docstring, in one line."""
        return " ".join((self[name].__doc__ or "").strip().split("\n\n")[0].split())

    def __getitem__(self, name: str) -> type[Plugin]:
        """Return the class called ``name``, or the one at an import path ``package.module:Class``.

        Raises:
            UserError: for an unknown name, with the nearest known one.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._from_import_path(name)
        raise UserError(f"unknown {self.kind} '{name}'{suggest(name, self.names())}")

    def build(self, spec: Any) -> Any:
        """Build a plug-in from its name, its mapping ``{name: ..., field: value}``, or return one already built.

        Raises:
            UserError: unknown name, unknown field, or a value that the field does not take.
        """
        if isinstance(spec, Plugin):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise UserError(f"{self.kind}: expected a name or a mapping with 'name', got {reprlib.repr(spec)}")
        name = spec["name"]
        fields = {key: value for key, value in spec.items() if key != "name"}
        if ":" in name and self._adapter:
            name, fields = self._adapter, {"path": name, "kwargs": fields}
        try:
            return self[name](**fields)
        except ValidationError as error:
            raise UserError(f"{self.kind} '{name}': {explain(error, self[name])}") from None

    def _from_import_path(self, path: str) -> type[Plugin]:
        found = import_object(path, self.kind)
        if not (isinstance(found, type) and issubclass(found, Plugin)):
            raise UserError(
                f"{self.kind} '{path}': expected a subclass of expressive_losses.registry.Plugin, got {found!r}"
            )
        if not found.name:
            found.name = path
        return found

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # before the imports: they may ask for names themselves
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self._package}.{module.name}")


def import_object(path: str, kind: str) -> Any:
    """Import ``package.module:name``: the only way that code outside the package is ever loaded.

    Raises:
        UserError: when the module or the name is not there, or importing it fails.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{kind} '{path}': expected an import path like package.module:name")
    module = _import(module_name, f"{kind} '{path}'")
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise UserError(f"{kind} '{path}': {error}") from None


def import_module(name: str) -> Any:
    """Import a module that the user named (``plugins: [my_module]``).

    Raises:
        UserError: when it is not there, or importing it fails.
    """
    return _import(name, f"plugins: cannot import '{name}'")


def _import(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{what}: {error}; is it on PYTHONPATH?") from None
    except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported
        raise UserError(f"{what}: {failure(error)}") from None


def failure(error: BaseException) -> str:
    """Return kind, first line and place of an error in code that is not ours."""
    text = (str(error).splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # its text names the place
        return f"{type(error).__name__}: {text}"
    return f"{type(error).__name__}: {text} ({frames[-1].filename}, line {frames[-1].lineno})"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for a near miss, else the list of what is known."""
    known = list(known)
    if not known:
        return "; there are none, leave it out"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn the first pydantic error into one line that names the key."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *place, wrong = first["loc"]
        if wrong == "name" and place:  # of a text where a section belongs
            return f"{'.'.join(map(str, place))}: {_expected_keys(_section(model, place))}, got {first['input']!r}"
        return f"unknown key '{key}'{suggest(str(wrong), _section(model, place).model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = _expected_keys(_section(model, first["loc"]))
    elif first["type"] == "tuple_type":
        message = "expected a list in square brackets"
    if first["type"] in ("missing", "value_error"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {reprlib.repr(first['input'])}"


def _is_the_same(known: type, cls: type) -> bool:
    """Return whether a class is a known one, imported once more: by another path, perhaps, if it is a user's own."""
    own = not any(one.__module__.startswith("expressive_losses.") for one in (known, cls))
    return known.__qualname__ == cls.__qualname__ and (own or known.__module__ == cls.__module__)


def _expected_keys(section: type[BaseModel]) -> str:
    return f"expected keys of its own ({', '.join(section.model_fields)})"


def _section(model: type[BaseModel], place: Iterable[str | int]) -> type[BaseModel]:
    """Return the section at a place in another: a field, or an element of a tuple or mapping that is one."""
    kind: Any = model
    for part in place:
        if hasattr(kind, "model_fields"):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = _element(kind)
    return kind if hasattr(kind, "model_fields") else _element(kind)  # the latter: an optional section


def _element(kind: Any) -> type[BaseModel]:
    return next(one for one in get_args(kind) if hasattr(one, "model_fields"))


def plugin_field(kind: Registry, optional: bool = False) -> Any:
    """Return the type of a field that holds one plug-in, written as a name or a mapping (or null, if optional)."""

    def validate(value: Any) -> Plugin | None:
        if value is None and optional:
            return None
        try:
            return kind.build(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    def serialize(plugin: Plugin | None) -> dict[str, Any] | None:
        return None if plugin is None else plugin.spec()

    return Annotated[Plugin | None, PlainValidator(validate), PlainSerializer(serialize)]


LOSSES = Registry("method", "expressive_losses.losses")
ATTACKS = Registry("attack", "expressive_losses.attacks")
MODELS = Registry("model", "expressive_losses.models", adapter="factory")
DATASETS = Registry("dataset", "expressive_losses.data")
EPS_SCHEDULES = Registry("eps schedule", "expressive_losses.schedules")
LR_SCHEDULES = Registry("learning-rate schedule", "expressive_losses.schedules")
OPTIMIZERS = Registry("optimizer", "expressive_losses.optimizers")
VERIFIERS = Registry("bound", "expressive_losses.verify")
