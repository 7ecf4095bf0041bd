"""Configs and modules that are wrong, and a command line that is right, as text."""

from __future__ import annotations

from itertools import pairwise

#: A training run of a second.
SMALL = "--device cpu --quiet --set model.width=4 --set model.hidden=16 --set training.batch_size=256 --epochs 2"

CONFIGS = {
    "broken": "a: [1",
    "list": "- 1",
    "text": "just words",
    "circle_a": "extends: circle_b.yaml",
    "circle_b": "extends: circle_a.yaml",
    "self": "extends: self.yaml",
    "orphan": "extends: nowhere.yaml",
    "extends_list": "extends: [a.yaml, b.yaml]",
    "code": "method: !!python/object/apply:os.system ['touch hacked']",
    "typo": "trainning: {epochs: 3}",
    "nested_typo": "training: {shi: {wieght: 3}}",
    "twice": "eps: {target: 0.1}\ntraining: {epochs: 3}\neps: {target: 0.3}",
    "twice_inside": "eps: {target: 0.1, target: 0.3}",
    "tabs": "training:\n\tepochs: 3",
    "null_section": "training: null",
    "list_section": "eps: [0.1]",
    "number_as_key": "1: 2",
    "unhashable_key": "[1, 2]: 3",
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")),
    "loop": "method: &m {name: *m}",
    "text_for_number": "optimizer: {lr: 5e-4x}",
    "bool_for_number": "training: {epochs: yes please}",
    "fraction_for_int": "training: {epochs: 2.5}",
    "deep": "a: " + "[" * 3000 + "]" * 3000,
}

MODULES = {
    "broken_syntax": "def make(:\n",
    "raises": "raise RuntimeError('boom\\nsecond line')\n",
    "exits": "import sys\nsys.exit(0)\n",
    "nets": """
from torch import nn
import torch

number = 3

def plain(classes, hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def nothing():
    return None

def crashes():
    raise KeyError("my bug")

def dropout():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

def needs(important):
    return plain(10)

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))

def nan():
    net = plain(10)
    with torch.no_grad():
        net[1].weight.fill_(float("nan"))
    return net

def odd():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Hardswish(), nn.Linear(8, 10))

def frozen():
    return plain(10).requires_grad_(False)

def unlearnt():
    return nn.Sequential(nn.Flatten(), nn.ReLU())

def half():
    return plain(10).half()

def overlapping():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(50, 10))

def over_rows():
    return nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))

def tuple_():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            return self.layer(x.flatten(1)), x
    return Two()

def fails_on_call():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            return {}["missing"]
    return Fails()
""",
}
