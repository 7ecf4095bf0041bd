"""How far are bounds in float32 from those in float64? One JSON row for each network and method, on stdout.

    python benchmarks/rounding.py runs/quick/mnist_0.1/exp_ibp/model.pt ... --data-dir data >> results/rounding.jsonl

The weights are the float32 ones in both, so that what differs is the arithmetic.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.environment import software_and_device
from expressive_losses.types import Box
from expressive_losses.verify.base import DEFAULT_TOLERANCE, scale_of
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

METHODS = {"ibp": 256, "crown_ibp": 64, "crown": 1}  # and how many images at once


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--first", type=int, default=300, metavar="N", help="of the test images")
    parser.add_argument("--crown-first", type=int, default=100, metavar="N", help="the same for CROWN, which is slow")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    for path in options.models:
        payload = checkpoint.read(path)
        config = Config.build(payload["config"], str(path))
        data = config.data.load(options.data_dir, "test")
        network = checkpoint.network_of(payload, str(path))
        about = {"network": config.model.spec(), "method": config.method.spec(), "dataset": config.data.name}
        for method in METHODS:
            count = options.crown_first if method == "crown" else options.first
            pixels, labels = data.images[:count] / data.scale, data.labels[:count]
            measured = differences(network, pixels, labels, float(config.eps.target), method)
            about["eps"] = config.eps.target.text
            print(
                json.dumps({**about, "bound": method, "images": len(labels), **measured, **circumstances()}), flush=True
            )


def differences(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, method: str) -> dict[str, float]:
    """Return the distribution of |float32 - float64| over all margins of all images.

    ``relative`` is to the largest logit of the image over the box's centre, or 1 if that is smaller. ``flattering`` is
    the largest amount by which float32 exceeds float64, the only direction that matters for soundness; ``near`` is
    the largest of the differences among margins between -1 and 1, where they could decide. ``allowed`` is what
    ``Rounding.usual`` says, ``share_of_allowed`` the largest difference over it.
    """
    low, high = (margins(network, images, labels, eps, method, dtype) for dtype in (torch.float32, torch.float64))
    error = low.double() - high
    with torch.no_grad():
        scale = scale_of(network(images)).unsqueeze(1).double()
        allowed = network.rounding().usual(Box.around(images, eps), torch.float32).unsqueeze(1).double()
    quantiles = torch.quantile(error.abs().flatten(), torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    near = error.abs()[high.abs() < 1]
    proven = (low > torch.maximum(DEFAULT_TOLERANCE * scale, allowed)).all(1)
    return {
        "median": quantiles[0],
        "p99": quantiles[1],
        "max": error.abs().max().item(),
        "flattering": error.max().item(),
        "relative_max": (error.abs() / scale).max().item(),
        "allowed_median": allowed.median().item(),
        "allowed_max": allowed.max().item(),
        "share_of_allowed": (error.abs() / allowed).max().item(),
        "near": near.max().item() if len(near) else 0.0,
        "near_count": len(near),
        "largest_logit": scale.max().item(),
        "largest_margin": high.abs().max().item(),
        "verified": int(proven.sum()),
        "verified_float64": int((high > 0).all(1).sum()),
        "verified_float32_only": int((proven & ~(high > 0).all(1)).sum()),
        "tolerance": DEFAULT_TOLERANCE,
    }


def margins(
    network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, method: str, dtype: torch.dtype
) -> Tensor:
    """Return the lower bounds on the margins, (N, K - 1), computed in ``dtype``."""
    evaluated = evaluation_copy(network, torch.device("cpu"), dtype)
    found = []
    with computing_in(dtype), torch.no_grad():
        for x, y in zip(images.split(METHODS[method]), labels.split(METHODS[method]), strict=True):
            found.append(evaluated.margins(Box.around(x.to(dtype), eps), y, method))
    return torch.cat(found)


def circumstances() -> dict[str, str]:
    """Return what the numbers depend on: the command (files by their names), hardware class, date, torch."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    hardware = names[0].split(":")[1].strip() if names else platform.machine()
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *(_without_folders(a) for a in sys.argv[1:])])
    return {
        "command": command,
        "hardware": hardware,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "git": software_and_device("cpu")["git"],
    }


def _without_folders(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument


if __name__ == "__main__":
    main()
