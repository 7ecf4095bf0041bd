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
    under another forward are another network. Functions that they call are not followed.
    """
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network.model))
    text = "\n".join([layers, *_sources(network.model), hash_of_tensors(network.state_dict())])
    return hashlib.sha256(text.encode()).hexdigest()


def _sources(model: nn.Module) -> list[str]:
    """Return the source of each class of the user's own among the modules and their bases; not if it was typed in."""
    classes = {one for module in model.modules() for one in type(module).__mro__}
    own = (one for one in classes if one.__module__.partition(".")[0] not in LIBRARIES)
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
