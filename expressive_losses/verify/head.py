"""The head of a ledger: what was asked. A resumed run, a shard or a check must ask the same."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Radius
from expressive_losses.verify.base import Verifier
from expressive_losses.verify.settings import Settings

#: Whose classes go by what they print.
LIBRARIES = ("torch", "torchvision", "expressive_losses", "builtins")


def head_of(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float | Radius,
    stages: Sequence[Verifier],
    settings: Settings,
) -> dict[str, Any]:
    """Return the head: everything that the rows depend on.

    Args:
        network, images, labels, eps, stages, settings: as :func:`expressive_losses.verify.run.verify` takes them;
            ``images`` and ``labels`` without those after ``settings.first``.
    """
    return {
        "weights_sha256": hash_of_weights(network),
        "data_sha256": hash_of_tensors({"images": images, "labels": labels}),
        "dataset": settings.dataset,
        "split": settings.split,
        "first": settings.first,
        "images": len(images),
        "shard": None if settings.shard is None else list(settings.shard),
        "eps": eps.text if isinstance(eps, Radius) else repr(float(eps)),
        "eps_value": float(eps),
        "stages": [stage.spec() for stage in stages],
        "dtype": settings.dtype,
        "seed": settings.seed,
    }


def hash_of_weights(network: BoundedNetwork) -> str:
    """Return the SHA-256 of the layers and the state dict: names, types, shapes and values of parameters and buffers.

    The layers as torch prints them, so that a ReLU in a Sigmoid's place is another network; addresses in memory, which
    functions print, are left out. Of classes of the user's own also the source, comments aside: the same weights
    under another forward are another network; and so are other numbers, words, functions or tensors in attributes of
    their modules. Functions that they call are not followed.
    """
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network.model))
    text = "\n".join(
        [layers, *_sources(network.model), *_settings(network.model), hash_of_tensors(network.state_dict())]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _settings(model: nn.Module) -> list[str]:
    """Return what modules compute with and do not print: attributes of the user's own, settings of average pooling."""
    unprinted = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    found = []
    for name, module in model.named_modules():
        if _is_own(type(module)):
            known = {key: value for key, value in vars(module).items() if key not in vars(nn.Module())}
            found += [f"{name}.{key} = {told}" for key, value in sorted(known.items()) if (told := _told(value))]
        elif isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
            given = {key: getattr(module, key, usual) for key, usual in unprinted.items()}
            found += [f"{name}.{key} = {value}" for key, value in given.items() if value != unprinted[key]]
    return found


def _told(value: Any) -> str:
    """Return a plain value, a function, a tensor or a list of these as text; "" for anything else."""
    if isinstance(value, Tensor):
        return hash_of_tensors({"": value})
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, bool | int | float | str | torch.dtype) or value is None:
        return repr(value)
    return getattr(value, "__qualname__", "") if callable(value) else ""


def _is_own(one: type) -> bool:
    """Return whether a class is the user's own."""
    return one.__module__.partition(".")[0] not in LIBRARIES


def _sources(model: nn.Module) -> list[str]:
    """Return the source of each class of the user's own among the modules and their bases; not if it was typed in."""
    own = {one for module in model.modules() for one in type(module).__mro__ if _is_own(one)}
    found = []
    for one in own:
        try:
            found.append(ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(one)))))
        except (OSError, TypeError, SyntaxError):
            continue
    return sorted(found)


def hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values, independent of order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype.str} {tuple(tensor.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
