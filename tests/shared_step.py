"""Run by test_distributed.py under torchrun: gradients of a step of every method in float64, saved by process 0.

torchrun ... tests/shared_step.py OUT
"""

import sys
from contextlib import nullcontext

import torch

from expressive_losses import distributed
from expressive_losses.attacks.base import OfWholeBatch
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import TrainingConfig
from expressive_losses.registry import ATTACKS, LOSSES, MODELS
from expressive_losses.step import Radii, forward_batch
from expressive_losses.types import Clock

#: Warm-up, ramp, and after it; the last for methods whose weights move along the ramp.
PHASES = {
    "warm-up": Radii(0.0, 0.0, 0.0),
    "ramp": Radii(0.1, 0.12, 0.4, 5, Clock(4, 4), 8),
    "end": Radii(0.1, 0.1, 1.0, 9, Clock(4, 4), 8),
}
BATCH = 13


def gradients(method: str, phase: str, policy: str) -> list[torch.Tensor]:
    """All gradients, then BatchNorm's running statistics and the logged terms."""
    torch.manual_seed(0)
    model = MODELS.build({"name": "cnn_tiny", "width": 4, "hidden": 8}).build((1, 8, 8), 4)
    network = BoundedNetwork(model, (1, 8, 8), 4).double()
    x, labels = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64), torch.randint(4, (BATCH,))
    generator = torch.Generator().manual_seed(1)
    loss, attack = LOSSES.build(method), ATTACKS.build({"name": "pgd", "steps": 2, "step_size": 0.5})
    config = TrainingConfig(l1=1e-3, bn_statistics=policy)
    parameters = list(network.parameters())
    memory = loss.memory(parameters)
    part = distributed.part_of(BATCH)
    with distributed.working_on(part) if part else nullcontext():
        noise = generator
        if part:
            x, labels = part.of(x), part.of(labels)
            noise = OfWholeBatch(generator, part.start, part.stop, part.total)
        batch, terms = forward_batch(network, loss, attack, x, labels, PHASES[phase], config, noise)
        if PHASES[phase].warmup:
            terms["total"].backward()
            distributed.add_gradients([parameter.grad for parameter in parameters])
        else:
            terms |= loss.backward(batch, terms, parameters, memory)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    found += [value for name, value in network.model.state_dict().items() if "running" in name]
    return [*found, *(terms[name].detach() for name in sorted(terms))]


def everything() -> dict[str, list[torch.Tensor]]:
    """By method, phase and policy."""
    found = {}
    for method in LOSSES.names():
        for phase in PHASES:
            found[f"{method} {phase} adversarial"] = gradients(method, phase, "adversarial")
    for policy in ("clean", "clean_frozen"):
        found[f"mtl_ibp ramp {policy}"] = gradients("mtl_ibp", "ramp", policy)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined(torch.device("cpu")):
        result = everything()
        if distributed.rank() == 0:
            torch.save(result, sys.argv[1])
