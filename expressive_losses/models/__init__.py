"""Networks by name: one family a file; every file here is found by the registry."""

from expressive_losses.models.base import Factory, Model, check_output

__all__ = ["Factory", "Model", "check_output"]
