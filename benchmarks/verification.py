"""Images per second of the cascade, of a loop over single images, and of the bounds alone. JSON rows on stdout.

    python benchmarks/verification.py runs/quick/mnist_0.3/mtl_ibp/model.pt --bound clean,ibp --data-dir data

The three take turns in one process, so that other work on the machine disturbs them alike; ratios are of neighbours.
Seconds are CPU time: on a shared machine wall time says more about its other users. Run it with OMP_NUM_THREADS=1.
The loop does what published verifiers do: one image after the other through auto_LiRPA's BoundedModule.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rounding import circumstances
from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.attacks.pgd import Pgd
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box
from expressive_losses.verify import Settings, build_stages, verify
from expressive_losses.verify.base import DEFAULT_TOLERANCE
from expressive_losses.verify.evaluation import computing_in


def main() -> None:
    """Print one row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--bound", default="clean,ibp", help="of clean, pgd, ibp, crown-ibp, crown")
    parser.add_argument("--first", type=int, default=2000, metavar="N", help="images for the cascade and the bounds")
    parser.add_argument("--loop-first", type=int, default=100, metavar="N", help="images for the loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    for path in options.models:
        payload = checkpoint.read(path)
        config = Config.build(payload["config"], str(path))
        data = config.data.load(options.data_dir, "test")[: options.first]
        images, eps = data.images / data.scale, float(config.eps.target)
        network, plain = (checkpoint.network_of(payload, str(path)) for _ in range(2))
        plain = BoundedNetwork(plain.model, plain.shape, plain.classes, fast_chain=False, **_normalisation(plain))
        row = measure(
            network, plain.eval(), images, data.labels, eps, options.bound, options.loop_first, options.rounds
        )
        about = {"network": config.model.spec(), "method": config.method.spec(), "eps": config.eps.target.text}
        print(json.dumps({**about, "bound": options.bound, **row, **circumstances()}), flush=True)


def _normalisation(network: BoundedNetwork) -> dict[str, list[float]]:
    return {"mean": network.mean.flatten().tolist(), "std": network.std.flatten().tolist()}


def measure(
    network: BoundedNetwork, plain: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, bound: str,
    loop_count: int, rounds: int,
) -> dict[str, float | int]:  # fmt: skip
    """Return images per second of the three, and the medians of the ratios."""
    names = bound.split(",")
    cascade = partial(run_cascade, network, images, labels, eps, bound)
    summary = cascade()  # also warms everything up
    seen = rows_seen(summary["rows"], names)
    calls: dict[str, Callable[[], object]] = {
        "cascade": cascade,
        "raw": partial(run_raw, network, images, labels, eps, seen),
        "loop": partial(run_loop, plain, images[:loop_count], labels[:loop_count], eps, names),
    }
    counts = {"cascade": len(images), "raw": len(images), "loop": min(loop_count, len(images))}
    calls["loop"]()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            with computing_in(torch.float32):
                call()
            seconds[name].append((time.process_time() - began) / counts[name])
    ratio = {
        "times_the_loop": median(a / b for a, b in zip(seconds["loop"], seconds["cascade"], strict=True)),
        "times_the_raw": median(a / b for a, b in zip(seconds["cascade"], seconds["raw"], strict=True)),
    }
    rates = {f"{name}_per_second": round(1 / median(values), 2) for name, values in seconds.items()}
    decided = {name: sum(row["decided_by"] == name for row in summary["rows"]) for name in names}
    rounded = {name: round(value, 2) for name, value in ratio.items()}
    return {"images": len(images), "loop_images": counts["loop"], "rounds": rounds, **rates, **rounded, "by": decided}


def run_cascade(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, bound: str) -> dict:
    """Verify as verify.py does, ledger and all; return the rows."""
    with tempfile.TemporaryDirectory() as out:
        verify(network, images, labels, eps, build_stages(bound), out, Settings(progress=False))
        lines = (Path(out) / "ledger.jsonl").read_text().splitlines()[1:]
    return {"rows": [json.loads(line) for line in lines]}


def rows_seen(rows: Sequence[dict], names: Sequence[str]) -> dict[str, Tensor]:
    """Return which images each stage had to look at: those that none before it had decided."""
    left, seen = sorted(row["index"] for row in rows), {}
    by = {row["index"]: row["decided_by"] for row in rows}
    for name in names:
        seen[name] = torch.tensor(left, dtype=torch.long)
        left = [index for index in left if by[index] != name]
    return seen


def run_raw(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, seen: dict[str, Tensor]) -> None:
    """Do the computations of the stages alone, in the same batches, on the images that each stage had to look at."""
    for name, rows in seen.items():
        size = VERIFIERS.build(name).batch_size(torch.device("cpu"))
        for at in rows.split(size):
            compute(network, images[at], labels[at], eps, name)


def run_loop(network: BoundedNetwork, images: Tensor, labels: Tensor, eps: float, names: Sequence[str]) -> int:
    """Decide one image after the other; return how many were verified."""
    verified = 0
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        for name in names:
            margins = compute(network, x, y, eps, name)
            positive = bool((margins > (0 if name in ("clean", "pgd") else DEFAULT_TOLERANCE)).all())
            if positive is (name not in ("clean", "pgd")):
                verified += positive
                break
    return verified


def compute(network: BoundedNetwork, x: Tensor, y: Tensor, eps: float, name: str) -> Tensor:
    """Return what one stage computes: margins at points, or bounds on them."""
    if name == "clean":
        with torch.no_grad():
            return _margins(network(x), y)
    box = Box.around(x, eps)
    if name == "pgd":
        attack = Pgd(steps=40, step_size=0.035)
        if network.fast_chain:
            with network.frozen() as logits:
                found = attack(logits, box, y, start=x)
        else:  # the loop: the plain module
            found = attack(network, box, y, start=x)
        with torch.no_grad():
            return _margins(network(found), y)
    with torch.no_grad():
        return network.margins(box, y, name.replace("-", "_"))


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(1, labels.unsqueeze(1))
    return true - logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1, keepdim=True)


if __name__ == "__main__":
    main()
