"""The adversarial polytope of a 2-D toy problem and its interval bounds during training: IBP, figure 4.

A 2-100-100-100-2 network learns 13 points of the unit square, 5 of them positive, by IBP training at radius 0.08. The
paper gives neither the optimiser nor the points: here Adam with a learning rate of 0.001, a ramp of the radius over 400
steps with the weight of the clean loss from 1 to 1/2, and points at random. Without the ramp the network becomes
constant.
NOTE: the paper's points are at least 0.08 apart; here 0.16, since boxes of radius 0.08 would overlap otherwise.

Source: paper "On the Effectiveness of Interval Bound Propagation", section 4.3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.experiments.processes import end_with_parent
from expressive_losses.locking import held
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import MODELS
from expressive_losses.run import environment, read_jsonl, write_text
from expressive_losses.types import Box

EPS = 0.08
STEPS = (0, 200, 800)
_SHAPE = (1, 1, 2)
_POINTS, _POSITIVE, _APART, _SAMPLES = 13, 5, 2 * EPS, 20_000
_RAMP, _LR, _HIDDEN = 400, 1e-3, (100, 100, 100)
#: What a row is of, beside its seed.
SETTINGS = {
    "eps": EPS, "steps": list(STEPS), "points": _POINTS, "positive": _POSITIVE, "apart": _APART, "samples": _SAMPLES,
    "ramp": _RAMP, "lr": _LR, "hidden": list(_HIDDEN),
}  # fmt: skip
#: Every scale's first seed, the one that is drawn.
DRAWN = 0


def points(generator: torch.Generator) -> Tensor:
    """Return 13 points of the unit square, no two closer than 0.16 in l_inf; (13, 1, 1, 2)."""
    chosen: list[Tensor] = []
    while len(chosen) < _POINTS:
        new = torch.rand(2, generator=generator)
        if all((new - old).abs().max() >= _APART for old in chosen):
            chosen.append(new)
    return torch.stack(chosen).view(-1, *_SHAPE)


@torch.no_grad()
def logit_bounds(model: nn.Module, box: Box) -> Box:
    """Return interval bounds on the logits of a multi-layer perceptron over boxes, (B, K) each."""
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            center, radius = layer((lower + upper) / 2), (upper - lower) / 2 @ layer.weight.abs().T
            lower, upper = center - radius, center + radius
        elif isinstance(layer, nn.ReLU):
            lower, upper = lower.relu(), upper.relu()
    return Box(lower, upper)


@torch.no_grad()
def snapshot(network: BoundedNetwork, point: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Return the logits of many points of the box around ``point``, and the interval bounds on them."""
    box = Box.around(point, EPS)
    inside = box.lower + torch.rand(_SAMPLES, *_SHAPE, generator=generator) * (box.upper - box.lower)
    bounds = logit_bounds(network.model, box)
    return {"logits": network(inside), "lower": bounds.lower[0], "upper": bounds.upper[0]}


def looseness(shot: dict[str, Any]) -> float:
    """Return the area of the interval bounds over that of the smallest rectangle about the sampled logits; >= 1."""
    reached = shot["logits"].amax(0) - shot["logits"].amin(0)
    return ((shot["upper"] - shot["lower"]).prod() / reached.prod()).item()


def train(seed: int, steps: Sequence[int] = STEPS) -> dict[int, dict[str, Any]]:
    """Train and return snapshots of one positive point, by number of steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = points(generator)
    labels = (torch.arange(len(x)) < _POSITIVE).long()
    model = MODELS.build({"name": "mlp", "hidden": _HIDDEN}).build(_SHAPE, 2)
    network = BoundedNetwork(model, _SHAPE, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
    shots = {}
    for step in range(max(steps) + 1):
        if step in steps:
            shots[step] = snapshot(network, x[:1], generator)
        optimizer.zero_grad()
        _loss(network, x, labels, min(1.0, step / _RAMP)).backward()
        optimizer.step()
    return shots


def _loss(network: BoundedNetwork, x: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Return the loss of IBP training: radius and weight of the verified part rise, to 0.08 and 1/2."""
    verified = verified_cross_entropy(network.margins(Box.around(x, EPS * progress), labels, "ibp"))
    return (1 - progress / 2) * F.cross_entropy(network(x), labels) + progress / 2 * verified


def draw(shots: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw the polytopes (grey) and their bounds (green) side by side."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(3.6 * len(shots), 3.4), layout="constrained")
    for axis, (step, shot) in zip(figure.subplots(1, len(shots)), shots.items(), strict=True):
        axis.scatter(*shot["logits"].T, s=1, color="grey", rasterized=True)
        width, height = (shot["upper"] - shot["lower"]).tolist()
        axis.add_patch(Rectangle(shot["lower"].tolist(), width, height, fill=False, edgecolor="tab:green", lw=1.5))
        axis.set(title=f"step {step}: {looseness(shot):.3g} x the rectangle", xlabel="logit 0", ylabel="logit 1")
        axis.margins(0.1)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None


def reproduce(seeds: Sequence[int], out: Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Do the seeds of which ``out``.jsonl has no row yet; return their rows. Seed 0 is drawn into ``out``.png.

    Other processes may do other seeds at the same time.

    Args:
        jobs: processes, one seed at a time each.
    """
    path, picture = out.with_suffix(".jsonl"), out.with_suffix(".png")
    there = {row["seed"] for row in read_jsonl(path) if _is_of_these_settings(row)}
    missing = [seed for seed in seeds if seed not in there or (seed == DRAWN and not picture.exists())]
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = _trained(missing, jobs)
    with held(out.parent):
        rows = {row["seed"]: row for row in [*read_jsonl(path), *(row for _, row, _ in trained)]}
        write_text(path, "".join(json.dumps(rows[seed]) + "\n" for seed in sorted(rows)))
        for seed, _, shots in trained:
            if seed == DRAWN:
                draw(shots, picture)
    return [rows[seed] for seed in seeds]


def _is_of_these_settings(row: dict[str, Any]) -> bool:
    """Return whether a row would come out the same; an older one does not say all of its settings."""
    said = {"steps": [int(step) for step in row["looseness"]], **row}
    return all(said[key] == value for key, value in SETTINGS.items() if key in said)


def command(seed: int) -> str:
    """Return the command that repeats the row of a seed."""
    return f"python -m expressive_losses.experiments polytope --seeds {seed}"


def _trained(seeds: Sequence[int], jobs: int) -> list[tuple[int, dict[str, Any], dict[int, dict[str, Any]]]]:
    if jobs == 1 or len(seeds) < 2:
        return [_row(seed) for seed in seeds]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=end_with_parent) as pool:
        return list(pool.map(_row, seeds))


def _row(seed: int) -> tuple[int, dict[str, Any], dict[int, dict[str, Any]]]:
    """Train; return the seed, its row and the snapshots."""
    about, shots = environment(torch.device("cpu")), train(seed)
    areas = {str(step): round(looseness(shot), 4) for step, shot in shots.items()}
    kept = {key: about[key] for key in ("time", "git", "device", "threads", "torch", "python")}
    return seed, {"command": command(seed), "seed": seed, "images": 1, **SETTINGS, "looseness": areas, **kept}, shots
