"""What a network is here, and how a user's own ``nn.Module`` becomes one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from expressive_losses.errors import UserError
from expressive_losses.registry import MODELS, Plugin, explain, failure, import_object

Shape = tuple[int, int, int]


class Model(Plugin):
    """Base of the networks: the fields are the sizes, ``build`` makes a freshly initialised module."""

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return a module that maps normalised images (B, *shape) to logits (B, classes).

        It ends in a ``nn.Linear``, because bounds merge the last layer into the specification, and has no
        dropout.

        Args:
            shape: (channels, height, width) of one image.
            classes: number of logits.

        Raises:
            UserError: when the network cannot take images of this shape.
        """
        raise NotImplementedError


@MODELS.register("factory")
class Factory(Model):
    """A network of your own, ``--model package.module:factory``: what the factory returns is trained.

    The factory is a function or class that returns an nn.Module (or a :class:`Model`). ``shape`` and
    ``classes`` are passed to it when it has parameters of these names. The module gets normalised images.

    Args:
        path: import path ``package.module:factory``.
        kwargs: further keyword arguments of the factory.
    """

    path: str
    kwargs: dict[str, Any] = Field(default_factory=dict)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Call the factory and check what it returns.

        Raises:
            UserError: when it is not callable, does not take these arguments, or returns something unusable.
        """
        factory = import_object(self.path, "model")
        if not callable(factory):
            raise UserError(
                f"model '{self.path}': expected a function or class that returns an nn.Module, got {factory!r}"
            )
        product = self._call(factory, shape, classes)
        module = product.build(shape, classes) if isinstance(product, Model) else product
        if not isinstance(module, nn.Module):
            raise UserError(f"model '{self.path}': must return a torch.nn.Module, got {type(module).__name__}")
        check_output(module, shape, classes, self.path)
        return module

    def _call(self, factory: Any, shape: Shape, classes: int) -> Any:
        arguments = {**_accepted(factory, {"shape": tuple(shape), "classes": classes}), **self.kwargs}
        try:
            inspect.signature(factory).bind(**arguments)
        except (TypeError, ValueError) as error:
            names = ", ".join(sorted(arguments)) or "no arguments"
            raise UserError(f"model '{self.path}': {error}; called with {names}") from None
        try:
            return factory(**arguments)
        except ValidationError as error:
            raise UserError(f"model '{self.path}': {explain(error, factory)}") from None
        except UserError:
            raise
        except Exception as error:  # whatever somebody's code does
            raise UserError(f"model '{self.path}': it failed with {failure(error)}") from error


def check_output(module: nn.Module, shape: Shape, classes: int, name: str = "model") -> None:
    """Run two images through ``module`` in eval mode and say in one line what is wrong with the outcome.

    Args:
        module: on any device; its train/eval modes are left as they were.
        shape: of one image.
        classes: the number of logits expected.
        name: what to call the network in the message.

    Raises:
        UserError: dropout inside, the image shape is not accepted, or the output is not a finite (2, classes)
            tensor.
    """
    dropouts = [key for key, layer in module.named_modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
    if dropouts:
        raise UserError(
            f"model '{name}': layer '{dropouts[0]}' is dropout, which cannot be bounded; "
            "remove it or put nn.Identity() there"
        )
    logits = _logits_of_two_images(module, shape, name)
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"model '{name}': must return one tensor of logits, got {type(logits).__name__}")
    if tuple(logits.shape) != (2, classes):
        raise UserError(
            f"model '{name}': a batch of 2 images must give logits of shape (2, {classes}), "
            f"got {tuple(logits.shape)}; make its last layer nn.Linear(..., {classes})"
        )
    if logits.dtype not in (torch.float32, torch.float64):
        raise UserError(f"model '{name}': must compute in float32, got {str(logits.dtype).removeprefix('torch.')}")
    if not torch.isfinite(logits).all():
        raise UserError(f"model '{name}': logits of a grey image are not finite; check its initialisation")


def _logits_of_two_images(module: nn.Module, shape: Shape, name: str) -> Any:
    modes = {layer: layer.training for layer in module.modules()}
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    module.eval()
    try:
        with torch.no_grad():
            return module(torch.full((2, *shape), 0.5, device=like.device, dtype=like.dtype))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"model '{name}': does not take images of shape {tuple(shape)} (C, H, W): {reason}") from error
    except Exception as error:  # whatever somebody's code does
        raise UserError(f"model '{name}': on two images it failed with {failure(error)}") from error
    finally:
        for layer, training in modes.items():
            layer.training = training


def _accepted(factory: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the offered arguments that the factory names."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {key: value for key, value in offered.items() if key in parameters}
