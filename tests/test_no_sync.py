"""A training step never waits for the device: nothing in it reads a value back to the host.

Checked on a CPU, where reading is cheap, so that it holds on a GPU, where each reading stalls the whole pipeline.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from expressive_losses import experiment
from expressive_losses.config import load, parse_assignment
from expressive_losses.data.batches import Batches
from expressive_losses.registry import ATTACKS, LOSSES
from expressive_losses.run import RunDirectory
from expressive_losses.step import Radii
from expressive_losses.trainer import Trainer

#: Operations whose result, or the shape of whose result, the host has to wait for.
READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "allclose", "item")
METHODS = ("cpu", "tolist", "numpy", "item", "__bool__", "__float__", "__int__", "__index__")


class Readings(TorchDispatchMode):
    """Collects the operations that read values back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.lstrip("_") in {reading.lstrip("_") for reading in READING} or name.startswith("_unique"):
            self.seen.append(name)
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.seen.append("index with a mask")
        return func(*args, **(kwargs or {}))


def readings_of(call, monkeypatch) -> list[str]:
    """What ``call`` reads back, by operation or method."""
    found: list[str] = []
    with monkeypatch.context() as patches:
        for method in METHODS:
            original = getattr(torch.Tensor, method)

            def noted(self, *args, _original=original, _method=method, **kwargs):
                found.append(_method)
                return _original(self, *args, **kwargs)

            patches.setattr(torch.Tensor, method, noted)
        with Readings() as readings:
            call()
    return found + readings.seen


def trainer_of(folder, *assignments: str) -> Trainer:
    schedule = "eps.schedule={name: linear, length: 2, warmup: 1}"
    small = ("model.width=4", "model.hidden=16", "training.epochs=4", schedule)
    config = load(None, [parse_assignment(text) for text in (*small, "training.l1=1e-6", *assignments)])
    data, held_out, _ = experiment.load_data(config, None)
    run = RunDirectory(folder)
    run.close()
    network = experiment.build_network(config, data)
    return Trainer(config, network, Batches(data, config.data.augmentation), Batches(held_out), run, quiet=True)


def assert_no_reading(trainer: Trainer, monkeypatch) -> None:
    """In the warm-up, in the ramp and after it; the first step of each may trace the network."""
    order = trainer.train.epoch_order(0, 0)
    for epoch in (0, 1, 3):
        trainer.step = epoch * trainer.steps_per_epoch + 2
        indices, radii = trainer.train.order_of_step(order, 1, 32), trainer.radii(trainer.step)
        trainer.train_step(indices, radii)
        assert readings_of(partial(one_step, trainer, indices, radii), monkeypatch) == []


def one_step(trainer: Trainer, indices: torch.Tensor, radii: Radii) -> None:
    """What the loop does for every batch."""
    trainer._add(trainer.train_step(indices, radii))


@pytest.mark.parametrize("method", [*LOSSES.names(), "{name: crown_ibp, fused: true, kappa_start: 0}"])
def test_a_step_of_every_method_reads_nothing_back(tmp_path, monkeypatch, method):
    assert_no_reading(trainer_of(tmp_path, f"method={method}"), monkeypatch)


@pytest.mark.parametrize("attack", [name for name in ATTACKS.names() if name != "none"])
def test_nor_does_any_attack(tmp_path, monkeypatch, attack):
    steps = ["attack.steps=3"] if "steps" in ATTACKS.build(attack).model_dump() else []
    assert_no_reading(trainer_of(tmp_path, f"attack={{name: {attack}}}", *steps), monkeypatch)


@pytest.mark.parametrize(
    "setting",
    ["training.bn_statistics=clean", "training.bn_statistics=clean_frozen", "model={name: mlp, hidden: [8]}"],
)
def test_nor_other_policies_and_networks(tmp_path, monkeypatch, setting):
    assert_no_reading(trainer_of(tmp_path, setting), monkeypatch)


def test_the_test_sees_readings(monkeypatch):
    x = torch.rand(3)
    for call, name in (
        (lambda: float(x[0]), "__float__"),
        (lambda: bool(x[0] > 0), "__bool__"),
        (lambda: x[x > 0.5], "index with a mask"),
        (lambda: x.nonzero(), "nonzero"),
        (lambda: x.tolist(), "tolist"),
    ):
        assert name in readings_of(call, monkeypatch), name
