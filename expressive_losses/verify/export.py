"""Problems for other verifiers: the network as ONNX, each image's property as VNN-LIB, the list as instances.csv.

The layout is that of the VNN-COMP benchmarks, which alpha-beta-CROWN and the other tools of the competition read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.verify.evaluation import evaluation_copy, pixels, refuse_rounded_weights
from expressive_losses.verify.files import write_whole, writing
from expressive_losses.verify.run import check_data

OPSET = 13  # old enough for every tool of VNN-COMP
INSTANCES = "instances.csv"


def export_onnx(network: BoundedNetwork, path: Path | str) -> Path:
    """Write the network, its normalisation included, as ONNX.

    One input "X", (1, *shape) in pixel units from 0 to 1; one output "Y", (1, K), the logits. BatchNorm is folded.

    Args:
        network: exported in eval mode, float32, from a copy.
        path: of the file.

    Raises:
        UserError: the package ``onnx`` is missing, torch cannot export a layer, or weights are no float32.
    """
    _need_onnx()
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    refuse_rounded_weights(network, torch.float32)
    copied = evaluation_copy(network, torch.device("cpu"), torch.float32)
    x = torch.zeros(1, *network.shape)
    names = {"input_names": ["X"], "output_names": ["Y"], "opset_version": OPSET}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that this exporter is the old one: the new one needs onnxscript
            torch.onnx.export(copied, (x,), str(path), dynamo=False, **names)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(f"the network cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
    return path


def vnnlib(image: Tensor, label: int, eps: float, classes: int, comment: str = "") -> str:
    """Return the property whose solutions are the counterexamples of an image.

    Inputs X_0, X_1, ... are the pixels in the order of the flattened image, within ``eps`` of it and in [0, 1]; outputs
    Y_j are the logits; a solution has Y_j >= Y_label for some j other than the label. So "unsat" is verified.

    Args:
        image: (*shape), pixel units, or uint8.
        label: of the image.
        eps: radius, pixel units.
        classes: K.
        comment: for the first line.
    """
    x = pixels(image, torch.float64).flatten().cpu().numpy()
    bounds = zip(np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1), strict=True)
    lines = [f"; {' '.join(comment.split())}"] if comment else []
    lines += [f"(declare-const X_{at} Real)" for at in range(len(x))]
    lines += [f"(declare-const Y_{at} Real)" for at in range(classes)]
    for at, (low, high) in enumerate(bounds):
        lines += [f"(assert (<= X_{at} {_decimal(high)}))", f"(assert (>= X_{at} {_decimal(low)}))"]
    wrong = [f"    (and (>= Y_{other} Y_{label}))" for other in range(classes) if other != label]
    return "\n".join([*lines, "(assert (or", *wrong, "))", ""])


def export(
    network: BoundedNetwork,
    images: Tensor,
    labels: Tensor,
    eps: float,
    out: Path | str,
    *,
    indices: Iterable[int] | None = None,
    timeout: float = 300.0,
) -> Path:
    """Write ``network.onnx``, ``vnnlib/image_000000.vnnlib`` for each image and ``instances.csv`` to ``out``.

    Args:
        network: to verify.
        images, labels: the data set, as for :func:`expressive_losses.verify.run.verify`.
        eps: radius, pixel units.
        out: folder, made if it is not there.
        indices: of the images to export; ``None``: all.
        timeout: seconds for each image, for ``instances.csv``.

    Returns:
        The path of ``instances.csv``.

    Raises:
        UserError: data that does not fit, no such image, a layer that cannot be exported.
    """
    check_data(network, images, labels, eps)
    if not (math.isfinite(timeout) and timeout > 0):
        raise UserError(f"timeout: expected seconds > 0, got {timeout}")
    chosen = _chosen(indices, len(images))
    out = Path(out)
    with writing(out):
        (out / "vnnlib").mkdir(parents=True, exist_ok=True)
    model = export_onnx(network, out / "network.onnx")
    rows = []
    for index in chosen:
        label = int(labels[index])
        comment = f"image {index}, label {label}, eps {eps!r}: solutions are counterexamples"
        name = f"vnnlib/image_{index:06d}.vnnlib"
        write_whole(out / name, vnnlib(images[index], label, eps, network.classes, comment))
        rows.append(f"{model.name},{name},{timeout:g}\n")
    write_whole(out / INSTANCES, "".join(rows))
    return out / INSTANCES


def logits_of_onnx(path: Path | str, images: Tensor) -> ndarray:
    """Return the logits (N, K) that onnxruntime computes for images in pixel units, one at a time.

    Raises:
        UserError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed. Type `pip install onnxruntime`.") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = pixels(images, torch.float32).cpu().numpy()[:, None]
    return np.concatenate([session.run(["Y"], {"X": x})[0] for x in batches])


def _chosen(indices: Iterable[int] | None, count: int) -> Sequence[int]:
    chosen = list(range(count) if indices is None else indices)
    outside = [index for index in chosen if not 0 <= index < count]
    if outside or not chosen:
        raise UserError(f"export: expected indices from 0 to {count - 1}, got {outside[0] if outside else 'none'}")
    return chosen


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UserError("the package onnx is not installed. Type `pip install expressive_losses[onnx]`.") from None


def _decimal(value: float) -> str:
    """Return all digits of a number, without an exponent, which not every parser takes."""
    return np.format_float_positional(value, trim="0")
