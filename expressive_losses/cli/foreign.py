"""Networks that this package did not train: a named architecture with a state_dict, or an ONNX file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.checkpoint import UNREADABLE, load_weights
from expressive_losses.config import parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.models.base import check_output
from expressive_losses.registry import DATASETS, MODELS
from expressive_losses.verify.onnx_import import module_of_onnx


@dataclass(frozen=True)
class Description:
    """What a checkpoint of this package would say about a network, from the command line instead.

    Attributes:
        weights: file of the state_dict.
        dataset: supplies ``shape`` and ``classes`` where those are not given.
        shape: of one image.
        classes: number of logits.
        mean, std: per channel, pixel units; ``None``: the network takes pixels from 0 to 1 as they are.
        fields: of the architecture, as ``key=value``.
    """

    weights: Path | None = None
    dataset: str | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fields: Sequence[str] = ()

    def refuse(self, source: str, *options: str) -> None:
        """Refuse options that a file answers itself.

        Raises:
            UserError: naming them.
        """
        given = [f"--{'model-set' if name == 'fields' else name}" for name in options if getattr(self, name)]
        if given:
            raise UserError(f"{source} says itself what {', '.join(given)} would say; leave it out")


def is_foreign(model: str) -> bool:
    """Return whether ``--model`` is an ONNX file, an import path or an architecture, and not a checkpoint."""
    if model.endswith(".onnx"):
        return True
    return not Path(model).exists() and (":" in model or model in MODELS.names())


def network_from(model: str, about: Description) -> tuple[BoundedNetwork, Path]:
    """Build what ``--model`` names, in eval mode on the CPU, and return it with the file that its weights are from.

    Raises:
        UserError: something is missing, or does not fit.
    """
    if model.endswith(".onnx"):
        about.refuse(model, "weights", "shape", "classes", "fields")
        module, shape, classes = module_of_onnx(model)
        return _normalised(module, shape, classes, about), Path(model)
    if about.weights is None:
        raise UserError(f"--weights is missing: '{model}' is an architecture; give the file of its state_dict")
    shape, classes = _sizes(model, about)
    module = _architecture(model, about.fields, shape, classes)
    weights = read_state_dict(about.weights)
    load_weights(module, without_prefix(weights, module.state_dict()), str(about.weights))
    return _normalised(module, shape, classes, about), about.weights


def _architecture(model: str, assignments: Sequence[str], shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the module. An import path that the user typed is trusted by that; see checkpoint.refuse_code."""
    fields: dict[str, Any] = {}
    for text in assignments:
        fields |= parse_assignment(text)
    module = MODELS.build({**fields, "name": model}).build(shape, classes)
    check_output(module, shape, classes, model)
    return module


def _sizes(model: str, about: Description) -> tuple[tuple[int, ...], int]:
    """Return shape and number of classes as given, else those of the data set."""
    data = DATASETS[about.dataset] if about.dataset else None
    shape = about.shape or getattr(data, "shape", None)
    classes = about.classes or getattr(data, "classes", None)
    missing = [name for name, value in (("--shape 1,28,28", shape), ("--classes 10", classes)) if value is None]
    if missing:
        raise UserError(f"architecture '{model}': give {' and '.join(missing)} (or a --dataset that has them)")
    if classes < 2:
        raise UserError(f"--classes: a classifier has at least 2, got {classes}")
    return shape, classes


def _normalised(module: nn.Module, shape: tuple[int, ...], classes: int, about: Description) -> BoundedNetwork:
    mean, std = about.mean or (0.0,), about.std or (1.0,)
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, shape[0]):
            raise UserError(f"{name}: expected 1 or {shape[0]} numbers, one a channel, got {len(values)}")
    return BoundedNetwork(module, shape, classes, mean, std).eval()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a plain state_dict, or one under the key "state_dict". Tensors only, never code; they arrive on the CPU.

    Raises:
        UserError: missing, damaged, holding more than tensors and plain values, or no state_dict.
    """
    try:
        with open(path, "rb") as file:
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: not a file of tensors and plain values; loading it could run code") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not a file of weights, or cut short: {type(error).__name__}") from None
    if isinstance(payload, Mapping) and {"format", "weights", "model"} <= set(payload):
        raise UserError(f"{path} is a checkpoint of expressive_losses and complete: --model {path}, without --weights")
    if isinstance(payload, Mapping) and isinstance(payload.get("state_dict"), Mapping):
        payload = payload["state_dict"]
    if not isinstance(payload, Mapping) or not payload or not all(isinstance(one, Tensor) for one in payload.values()):
        raise UserError(f"{path}: expected a state_dict (names and tensors), or one under the key 'state_dict'")
    return dict(payload)


def without_prefix(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without a prefix that all names share ("module.", "model.0.") if that gives those expected.

    Wrappers such as DataParallel leave one. Whatever does not fit exactly is returned as it is, to be refused.
    """
    parts = next(iter(weights)).split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if {name.removeprefix(prefix) for name in weights} == set(expected) and all(
            name.startswith(prefix) for name in weights
        ):
            return {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)
