"""Self-describing checkpoints: weights with all that is needed to rebuild the network, and optionally to go on
training.

A file is written beside its target and moved over it, so it is whole or absent. It is read with
``weights_only=True`` (tensors and plain values, never code), after the checksum of every part has been
compared.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.errors import UserError
from expressive_losses.models import Factory, Model
from expressive_losses.registry import MODELS, explain

FORMAT = 1

#: What torch raises where a file is none of its own, or damaged: its unpickler follows whatever bytes it finds.
UNREADABLE = (
    zipfile.BadZipFile, EOFError, RuntimeError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError,
    AssertionError, struct.error,
)  # fmt: skip


def describe(network: BoundedNetwork, config: Config) -> dict[str, Any]:
    """Return the part of a checkpoint that rebuilds the network and names what it was trained for."""
    return {
        "format": FORMAT,
        "model": config.model.spec(),
        "shape": list(network.shape),
        "classes": network.classes,
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "weights": {name: value.detach().clone() for name, value in network.model.state_dict().items()},
        "config": config.resolved(),
    }


def save(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: when the file system refuses (full disk, read-only folder); the previous file is untouched then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch turns a short write into a RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write the checkpoint: {_first_line(error)}; free some space or choose --out"
        ) from None


def read(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint; tensors arrive on the CPU.

    Raises:
        UserError: missing, damaged, of a newer format, or not a checkpoint of this package.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise UserError(
                f"{path}: the checkpoint is damaged (checksum of {damaged}); use the previous one or train again"
            )
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a checkpoint, or cut short: {_first_line(error)}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: it holds more than tensors and plain values, loading it could run code"
        ) from None
    if not isinstance(payload, dict) or "format" not in payload:
        raise UserError(
            f"{path}: not a checkpoint of expressive_losses (no 'format'); "
            "for a plain state_dict name its architecture too: --model NAME --weights FILE"
        )
    if isinstance(payload["format"], int) and payload["format"] > FORMAT:
        raise UserError(
            f"{path}: checkpoint format {payload['format']} is newer than this package knows ({FORMAT}); update it"
        )
    try:
        _Description.model_validate(payload)
    except ValidationError as error:
        problem = explain(error, _Description)
        raise UserError(f"{path}: the checkpoint is incomplete or was changed: {problem}") from None
    return payload


class _Description(BaseModel):
    """What :func:`describe` writes; there may be more."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
    format: int
    model: dict[str, Any]
    shape: Annotated[list[PositiveInt], Len(3, 3)]
    classes: PositiveInt
    mean: list[float]
    std: list[PositiveFloat]
    weights: dict[str, torch.Tensor]
    config: dict[str, Any]


def code_named_by(payload: Mapping[str, Any]) -> list[str]:
    """Return every import path in a checkpoint: modules (``plugins``) and objects (``package.module:name``)."""
    config = payload.get("config") or {}
    return sorted(
        {*map(str, config.get("plugins") or ()), *_import_paths(payload.get("model")), *_import_paths(config)}
    )


def _import_paths(value: Any) -> list[str]:
    """Return what a spec, or a mapping of specs, would import: the name of a plug-in, or the path of the adapter."""
    if not isinstance(value, Mapping):
        return []
    here = [value[key] for key in ("name", "path") if isinstance(value.get(key), str) and ":" in value[key]]
    return here + [path for inner in value.values() for path in _import_paths(inner)]


def refuse_code(payload: Mapping[str, Any], trusted: Iterable[str], source: str) -> None:
    """Let a checkpoint import only what the user named: it may come from a stranger.

    Raises:
        UserError: naming the code that it asks for.
    """
    asked = [path for path in code_named_by(payload) if path not in set(trusted)]
    if asked:
        options = " ".join(f"--trust {path}" for path in asked)
        raise UserError(f"{source} asks to import code: {', '.join(asked)}; if you know and trust it, add {options}")


def network_of(payload: Mapping[str, Any], source: str = "checkpoint", trusted: Iterable[str] = ()) -> BoundedNetwork:
    """Rebuild the network of a checkpoint, in eval mode on the CPU.

    Args:
        payload: from :func:`read`.
        source: what to call it in messages.
        trusted: import paths that the checkpoint may use, as the user gave them.

    Raises:
        UserError: when the weights do not fit the architecture, or are not finite, or it asks for code not trusted.
    """
    refuse_code(payload, trusted, source)
    shape, classes = tuple(payload["shape"]), int(payload["classes"])
    plan = MODELS.build(payload["model"])
    if not isinstance(plan, Factory):  # somebody's own code, once trusted, need not run without numbers
        _refuse_a_larger_network(plan, shape, classes, payload["weights"], source)
    model = plan.build(shape, classes)
    load_weights(model, payload["weights"], source)
    return BoundedNetwork(model, shape, classes, payload["mean"], payload["std"]).eval()


def _refuse_a_larger_network(
    plan: Model, shape: tuple[int, int, int], classes: int, weights: Mapping[str, torch.Tensor], source: str
) -> None:
    """Raise when ``plan`` has more numbers than ``weights``: a damaged file may ask for all memory there is."""
    with torch.device("meta"):  # takes no memory
        numbers = sum(value.numel() for value in plan.build(shape, classes).state_dict().values())
    found = sum(value.numel() for value in weights.values())
    if numbers > found:
        raise UserError(f"{source}: the weights do not fit the model: it has {numbers:,} numbers, the file {found:,}")


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state_dict, strictly: every name and shape must match and every value must be finite."""
    ours = model.state_dict()
    other = [name for name, value in weights.items() if name in ours and value.dtype != ours[name].dtype]
    if other:
        theirs, mine = (str(these[other[0]].dtype).removeprefix("torch.") for these in (weights, ours))
        raise UserError(
            f"{source}: the weights are {theirs} and would be rounded or widened to {mine}, which is another network "
            f"than the one they are from; convert them to {mine} yourself if that is the one you mean"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise UserError(f"{source}: the weights do not fit the model: {details[:300]}") from None
    broken = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{source}: weights are not finite: {', '.join(broken[:3])}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
