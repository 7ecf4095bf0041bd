"""Shi et al.'s initialisation, also where branches add up."""

import math

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.initialize import shi_initialize
from expressive_losses.registry import MODELS
from expressive_losses.types import Box


class Residual(nn.Module):
    """relu(W1 x) -> relu(h + V h) -> W2, all layers as wide."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first, self.branch, self.second, self.last = (nn.Linear(width, width) for _ in range(4))
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        h = self.relu1(self.first(self.flatten(x)))
        return self.last(self.relu3(self.second(self.relu2(h + self.branch(h)))))


def names_after_sums(network: BoundedNetwork) -> list[str]:
    halved = {id(weight) for weight in network.weights_after_sums()}
    return [name for name, parameter in network.model.named_parameters() if id(parameter) in halved]


def test_the_layers_that_read_a_sum_are_found():
    """Both branches of a block that reads another one's sum; not the linear layer behind Flatten, as published."""
    resnet = MODELS.build({"name": "resnet", "width": 4, "blocks": (1, 2)}).build((1, 8, 8), 4)
    found = names_after_sums(BoundedNetwork(resnet, (1, 8, 8), 4))
    assert found == ["4.conv1.weight", "4.shortcut.0.weight", "5.conv1.weight"]
    assert names_after_sums(BoundedNetwork(Residual(), (1, 16, 16), 256)) == ["second.weight"]


@pytest.mark.parametrize("name", ["cnn_tiny", "wide_resnet"])
def test_nothing_is_halved_in_a_chain_or_behind_batch_norm(name):
    fields = {"widen": 1} if name == "wide_resnet" else {}
    model = MODELS.build({"name": name, **fields}).build((1, 8, 8), 4)
    assert names_after_sums(BoundedNetwork(model, (1, 8, 8), 4)) == []


def test_halved_weights_keep_the_width_of_intervals():
    """From the sum to the layer that reads it: without the halving, intervals would be twice as wide."""
    torch.manual_seed(0)
    network = BoundedNetwork(Residual(), (1, 16, 16), 256)
    shi_initialize(network, after_sums=network.weights_after_sums())
    model, std = network.model, math.sqrt(2 * math.pi) / 256
    for layer, expected in ((model.first, std), (model.branch, std), (model.second, std / 2)):
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.02)
    x, labels = torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.long)
    inputs = network.bounds(Box.around(x, 0.01), labels, "ibp").relu_inputs
    first, _, second = (float((box.upper - box.lower).detach().mean()) for box in inputs)
    assert second / first == pytest.approx(1, rel=0.3)


class Fixed(Residual):
    """The weight behind the sum is a buffer, the addend of the first layer a constant."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.register_buffer("fixed", torch.eye(width))

    def forward(self, x):
        h = self.relu1(self.first(self.flatten(x)) + 0.5)
        return self.last(self.relu3(nn.functional.linear(self.relu2(h + self.branch(h)), self.fixed)))


def test_no_weight_but_a_drawn_one_behind_two_branches_is_halved():
    """Neither a buffer, nor what reads a sum with a constant, nor the last layer, which keeps torch's default."""
    assert names_after_sums(BoundedNetwork(Fixed(), (1, 4, 4), 16)) == []
    network = BoundedNetwork(Residual(16), (1, 4, 4), 16)
    network.model.second, before = nn.Identity(), network.model.last.weight.detach().clone()
    network.model.relu3 = nn.Identity()
    assert names_after_sums(network) == ["last.weight"]
    shi_initialize(network, after_sums=network.weights_after_sums())
    assert torch.equal(network.model.last.weight, before)


def test_the_trainer_halves_them(tmp_path):
    from test_no_sync import trainer_of

    settings = ("model={name: resnet, width: 4, blocks: [1, 2]}", "training.capture=never")
    torch.manual_seed(0)
    network = trainer_of(tmp_path, *settings).network
    block = network.model[5]
    std = math.sqrt(2 * math.pi) / (8 * 9)
    assert float(block.conv1.weight.detach().std()) == pytest.approx(std / 2, rel=0.1)
    assert float(block.conv2.weight.detach().std()) == pytest.approx(std, rel=0.1)
