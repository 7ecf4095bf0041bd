"""Import torchvision beside a torch that its compiled operators were not built for."""

import importlib
import sys

import torch

from expressive_losses.errors import UserError

# torchvision registers fake implementations for these two at import, by name.
_OPERATORS = ("nms", "qnms")

_schemas = None  # the library that holds the schemas; they vanish with it


def load_torchvision():
    """Import torchvision, also where its compiled operators cannot be loaded.

    The wheel on PyPI is built for CUDA. Beside a CPU-only torch its operators do not load, and its import
    dies because `torchvision::nms` is unknown. Datasets and transforms need none of them, only their schemas
    must exist.

    Returns:
        The `torchvision` module.

    Raises:
        UserError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise UserError(
            "torchvision is not installed; this data set needs it. Type `make install`, "
            "or `pip install torchvision` (the release that goes with your torch)."
        ) from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _define_operator_schemas()
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported
    return importlib.import_module("torchvision")


def _define_operator_schemas():
    global _schemas
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            _schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
