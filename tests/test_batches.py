"""The bounds of an image do not depend on the images beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.types import Box
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

EPS = torch.tensor([0.01, 0.03, 0.1, 0.2, 0.3, 0.5], dtype=torch.float64)


def monotone() -> BoundedNetwork:
    """No negative weights in the hidden layers: IBP is exact on many neurons, where CROWN's relaxations are loose."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight += layer.weight.abs()
            layer.bias.uniform_(-1.0, 1.0)
    return BoundedNetwork(model, (8,), 3)


def convolutional() -> BoundedNetwork:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten()]
    return BoundedNetwork(nn.Sequential(*layers, nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)), (1, 8, 8), 3)


@pytest.mark.parametrize("make", [monotone, convolutional])
@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown", "alpha_crown"])
def test_bounds_agree_alone_and_in_a_batch(make, method):
    """In float64, to 1e-12. The images' boxes differ in how many neurons they leave unstable.

    auto_LiRPA by itself differs by 6e-3 on the monotone network: CROWN's bounds of neurons that are unstable in one
    image replace those of IBP in all.
    """
    evaluated = evaluation_copy(make(), "cpu", torch.float64)
    x = torch.rand(6, *evaluated.shape, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(6) % 3
    box = Box.around(x, EPS.view(-1, *[1] * (x.ndim - 1)))
    with computing_in(torch.float64), torch.no_grad():
        together = evaluated.margins(box, labels, method)
        for at in range(6):
            one = slice(at, at + 1)
            alone = evaluated.margins(box[one], labels[one], method)
            torch.testing.assert_close(alone, together[one], rtol=1e-12, atol=1e-12)
