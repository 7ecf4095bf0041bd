"""The adversarial polytope of a 2-D toy problem and its interval bounds during training: IBP, figure 4.

A 2-100-100-100-2 network learns 13 points of the unit square, 5 of them positive, by IBP training at radius 0.08. The
paper gives neither the optimiser nor the points: here Adam with a learning rate of 0.001, a ramp of the radius over 400
steps with the weight of the clean loss from 1 to 1/2, and points at random. Without the ramp the network becomes
constant.
NOTE: the paper's points are at least 0.08 apart; here 0.16, since boxes of radius 0.08 would overlap otherwise.

Source: paper "On the Effectiveness of Interval Bound Propagation", section 4.3.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import MODELS
from expressive_losses.run import environment, write_text
from expressive_losses.types import Box

EPS = 0.08
STEPS = (0, 200, 800)
_SHAPE = (1, 1, 2)
_POINTS, _POSITIVE, _APART, _SAMPLES = 13, 5, 2 * EPS, 20_000
_RAMP = 400


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
    model = MODELS.build({"name": "mlp", "hidden": (100, 100, 100)}).build(_SHAPE, 2)
    network = BoundedNetwork(model, _SHAPE, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
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
        axis.set(title=f"step {step}: bounds {looseness(shot):.3g} x the area", xlabel="logit 0", ylabel="logit 1")
        axis.margins(0.1)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None


def polytope_command(arguments: Sequence[str]) -> None:
    """Train the toy network of IBP's figure 4 and draw its polytope and interval bounds; seconds on any machine."""
    parser = argparse.ArgumentParser(
        prog="expressive_losses.experiments polytope", description=polytope_command.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="writes PATH.jsonl and PATH.png")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="the first one is drawn")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about, rows = environment(torch.device("cpu")), []
    for seed in options.seeds:
        shots = train(seed)
        if seed == options.seeds[0]:
            draw(shots, options.out.with_suffix(".png"))
        areas = {str(step): round(looseness(shot), 4) for step, shot in shots.items()}
        command = f"python -m expressive_losses.experiments polytope --seeds {seed}"
        kept = {key: about[key] for key in ("time", "git", "device", "threads", "torch", "python")}
        rows.append({"command": command, "seed": seed, "images": 1, "eps": EPS, "looseness": areas, **kept})
    write_text(options.out.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    print(f"area of the bounds / area reached, by step: {rows[0]['looseness']}; {options.out.with_suffix('.png')}")
