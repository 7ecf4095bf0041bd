"""Run by test_distributed.py under torchrun: a step of every method and statistics in float64, saved by every process.

torchrun ... tests/shared_step.py OUT
"""

import sys
from contextlib import nullcontext

import torch

from expressive_losses import distributed
from expressive_losses.attacks.base import OfWholeBatch
from expressive_losses.bounds import BoundedNetwork, refresh_population_statistics
from expressive_losses.bounds.statistics import batch_norms
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
CHAIN = {"name": "cnn_tiny", "width": 4, "hidden": 8}
#: With a shortcut that has BatchNorm: its gradient meets that of the other branch.
RESIDUAL = {"name": "resnet", "width": 2, "blocks": [1, 1], "hidden": 8}


def network_of(model: dict) -> BoundedNetwork:
    torch.manual_seed(0)
    return BoundedNetwork(MODELS.build(model).build((1, 8, 8), 4), (1, 8, 8), 4).double()


def gradients(model: dict, method: str | dict, phase: str, policy: str) -> list[torch.Tensor]:
    """All gradients, then BatchNorm's running statistics and the logged terms."""
    network = network_of(model)
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
    return [*found, *running(network), *(terms[name].detach() for name in sorted(terms))]


def running(network: BoundedNetwork) -> list[torch.Tensor]:
    """BatchNorm's running means and variances, and of how many batches."""
    return [value.double() for name, value in network.model.state_dict().items() if "running" in name or "num" in name]


def statistics(momentum: float | None) -> list[torch.Tensor]:
    """Mean and biased variance over the second of two batches by layer, the running ones, then all logits.

    Args:
        momentum: of every layer.
    """
    network = network_of(RESIDUAL).train()
    for layer in batch_norms(network).values():
        layer.momentum = momentum
    part = distributed.part_of(BATCH)
    for _ in range(2):
        x = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64)
        with torch.no_grad(), distributed.working_on(part):
            logits, found = network.train_logits(part.of(x) if part else x)
            logits = distributed.gathered(logits)
    return [*(value for pair in found.values() for value in pair), *running(network), logits]


def population(count: int) -> list[torch.Tensor]:
    """Running statistics over that many batches, the last of them smaller."""
    network = network_of(RESIDUAL)
    batches = [torch.rand(4 - (number == count - 1), 1, 8, 8, dtype=torch.float64) for number in range(count)]
    refresh_population_statistics(network, batches[distributed.rank() :: distributed.processes()])
    return running(network)


def everything() -> dict[str, list[torch.Tensor]]:
    """By method, phase and policy; and the statistics alone."""
    found = {}
    for method in [*LOSSES.names(), {"name": "crown_ibp", "fused": True}]:
        for phase in PHASES:
            found[f"{method} {phase} adversarial"] = gradients(CHAIN, method, phase, "adversarial")
        found[f"{method} residual"] = gradients(RESIDUAL, method, "ramp", "adversarial")
    for policy in ("clean", "clean_frozen"):
        for name, model in (("chain", CHAIN), ("residual", RESIDUAL)):
            found[f"mtl_ibp ramp {policy} {name}"] = gradients(model, "mtl_ibp", "ramp", policy)
    found |= {f"statistics {momentum}": statistics(momentum) for momentum in (0.1, None)}
    return found | {f"population {count}": population(count) for count in (2, 5)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined(torch.device("cpu")):
        torch.save(everything(), f"{sys.argv[1]}.{distributed.rank()}")
