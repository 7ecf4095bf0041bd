"""Shared fixtures: the published network with its weights, where real data is, modules of a user's own."""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expressive_losses import experiment
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import Interrupted
from expressive_losses.registry import LOSSES, VERIFIERS
from expressive_losses.types import Box

GOLDEN = Path(__file__).parent / "golden" / "golden.npz"


def pytest_addoption(parser):
    parser.addoption("--data", default=os.environ.get("EXPRESSIVE_LOSSES_DATA"), help="folder with MNIST/raw")


@pytest.fixture
def data_root(request) -> Path:
    """The folder of real data sets, or a skip that says how to give it."""
    root = request.config.getoption("--data")
    if not root:
        pytest.skip("needs MNIST: give --data DIR or set EXPRESSIVE_LOSSES_DATA to a folder that holds MNIST/raw")
    return Path(root)


@pytest.fixture
def train_and_stop(monkeypatch):
    """A function that trains into a folder on the CPU and stops after so many steps, as SIGTERM does."""

    def train(config, out: Path, steps: int) -> None:
        done = itertools.count(1)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(experiment, "stop_on_sigterm", lambda: nullcontext(lambda: next(done) >= steps))
            experiment.train(config, out, torch.device("cpu"), quiet=True)

    return train


class Golden:
    """Numbers computed with the published implementation (tests/golden/README.md)."""

    eps = 0.1

    def __init__(self) -> None:
        self.arrays = np.load(GOLDEN)
        self.x = torch.from_numpy(self.arrays["x_uint8"]).float() / 255
        self.labels = torch.from_numpy(self.arrays["labels"])
        sign = torch.from_numpy(self.arrays["adv_sign_int8"]).float()
        self.adversarial = (self.x + self.eps * sign).clamp(0, 1)
        self.box = Box.around(self.x, self.eps)

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def network(self) -> BoundedNetwork:
        """The published cnn_small_bn with its weights, in eval mode."""
        model = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
            nn.Linear(1568, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
        weights = {k.removeprefix("w."): self[k] for k in self.arrays.files if k.startswith("w.")}
        model.load_state_dict(weights)
        return BoundedNetwork(model, (1, 28, 28), 10).eval()


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Return a function that writes a module of the user's own and returns its name.

    What it registers is gone afterwards: tests that iterate a registry must not find it.
    """
    written = []
    for registry in (LOSSES, VERIFIERS):
        registry.names()  # the package's own are there before the copy is taken
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)
