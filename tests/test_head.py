"""The hash of a network: what it computes decides, not how its source is laid out."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.verify.head import hash_of_weights
from expressive_losses.verify.onnx_import import Constant, OnnxModule, Step, Sum

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())
"""


def hash_of(model: nn.Module) -> str:
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    return hash_of_weights(BoundedNetwork(model, (4,), 3).eval())


@pytest.fixture
def from_file(tmp_path, monkeypatch):
    def load(source: str) -> nn.Module:
        path = tmp_path / f"net_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("my_net", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_net", module)
        spec.loader.exec_module(module)
        return module.Net()

    return load


def test_another_forward_is_another_network(from_file):
    before = hash_of(from_file(SOURCE))
    assert hash_of(from_file(SOURCE)) == before
    assert hash_of(from_file(SOURCE.replace(".relu()", ".sigmoid()"))) != before
    assert hash_of(from_file(SOURCE.replace("(x).relu", "(x).relu().relu"))) != before


def test_another_forward_of_a_base_class_is_another_network(from_file):
    derived = "\n\nclass Base(Net):\n    pass\n\n\nBase, Net = Net, Base\nNet.__name__ = 'Net'\n"
    assert hash_of(from_file(SOURCE + derived)) != hash_of(from_file(SOURCE.replace("relu()", "tanh()") + derived))


def test_comments_and_layout_are_not_part_of_the_network(from_file):
    before = hash_of(from_file(SOURCE))
    changed = SOURCE.replace("return self", "# the last layer\n        return (self").replace("relu())", "relu()))")
    assert changed != SOURCE
    assert hash_of(from_file(changed)) == before


def test_a_class_without_source_is_hashed_by_its_layers():
    """As one that was typed in at a prompt."""
    typed = type("Typed", (nn.Sequential,), {})
    assert hash_of(typed(nn.Linear(4, 3))) == hash_of(typed(nn.Linear(4, 3)))
    assert hash_of(typed(nn.Linear(4, 3))) != hash_of(typed(nn.Linear(4, 3), nn.ReLU()))


def test_the_wiring_and_the_constants_of_an_onnx_file_are_part_of_the_network():
    def steps(operation: str, first: bool, source: str) -> OnnxModule:
        shift = Constant(operation, torch.ones(4), first)
        return OnnxModule("x", [Step("a", ("x",), shift), Step("b", ("a", source), Sum())], "b")

    made = [steps("Add", False, "a"), steps("Sub", False, "a"), steps("Sub", True, "a"), steps("Add", False, "x")]
    assert len({hash_of(one) for one in made}) == len(made)
    assert hash_of(steps("Add", False, "a")) == hash_of(made[0])


@pytest.mark.parametrize(
    "before, after",
    [(0.5, 0.25), (torch.relu, torch.tanh), (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])), ([1, 2], [1, 3])],
)
def test_an_attribute_of_ones_own_module_is_part_of_the_network(from_file, before, after):
    """The same source and weights, as of a factory with other arguments."""
    made = []
    for value in (before, before, after):
        model = from_file(SOURCE)
        model.kept = value
        made.append(hash_of(model))
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("other", [{"ceil_mode": True}, {"count_include_pad": False}, {"divisor_override": 5}])
def test_what_average_pooling_does_not_print_is_part_of_the_network(other):
    def of(**settings):
        return hash_of(nn.Sequential(nn.Unflatten(1, (1, 4, 1)), nn.AvgPool2d(1, **settings), nn.Flatten()))

    assert of() == of(ceil_mode=False) != of(**other)
