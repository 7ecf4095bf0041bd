"""A small instance of every registered model, images for it, and the smallest margins that sampling finds."""

import torch

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.models import Model
from expressive_losses.registry import MODELS
from expressive_losses.types import Box, margins_of

CLASSES = 4
#: name -> (fields, image shape): small enough to bound in a moment. Models without an entry are bounded as they are
#: registered, in one test of their own.
INSTANCES = {
    "cnn7": ({"width": 4, "hidden": 8}, (1, 8, 8)),
    "cnn5": ({"width": 4, "hidden": 8}, (1, 8, 8)),
    "cnn_small": ({"width": 4, "hidden": 8}, (1, 8, 8)),
    "cnn_tiny": ({"width": 4, "hidden": 8}, (1, 8, 8)),
    "mlp": ({"hidden": [8, 8]}, (1, 4, 4)),
    "dm_small": ({}, (1, 12, 12)),
    "resnet": ({"width": 4}, (1, 8, 8)),
    "wide_resnet": ({"widen": 1}, (1, 4, 4)),
    "model_a": ({}, (1, 8, 8)),
}
TRAINING_METHODS = ("ibp", "ibp_logits", "crown_ibp", "crown_ibp_fused")
METHODS = ("ibp", "ibp_logits", "crown_ibp", "crown", "alpha_crown")


def randomized(network: BoundedNetwork, seed: int) -> BoundedNetwork:
    """Give BatchNorm layers statistics and affine parameters that are not the trivial ones."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-0.5, 0.5, generator=generator)
            layer.running_var.uniform_(0.3, 2, generator=generator)
            with torch.no_grad():
                layer.weight.uniform_(-1.5, 1.5, generator=generator)
                layer.bias.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def instance(name: str, seed: int = 0) -> BoundedNetwork:
    fields, shape = INSTANCES[name]
    torch.manual_seed(seed)
    model: Model = MODELS.build({"name": name, **fields})
    return randomized(BoundedNetwork(model.build(shape, CLASSES), shape, CLASSES, (0.3,), (0.4,)), seed)


def sampled_minimum(network, box: Box, labels, samples: int = 64) -> torch.Tensor:
    """The smallest margins over random points and random corners of the box."""
    lowest = margins_of(network(box.center), labels)
    generator = torch.Generator().manual_seed(1)
    for index in range(samples):
        x = box.sample(generator)
        if index % 2:
            x = torch.where(x > box.center, box.upper, box.lower)
        lowest = torch.minimum(lowest, margins_of(network(x), labels))
    return lowest


def data(network, seed: int = 0, size: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, *network.shape, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def plain(*layers):
    return torch.nn.Sequential(*layers)
