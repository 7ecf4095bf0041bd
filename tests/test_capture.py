"""Updates from a graph equal updates one by one: every number that changes along a run reaches the graph as a tensor.

On a CPU with :class:`tape.Tape` in place of CUDA's graphs, which repeats operations and no python as they do.
tests/test_cuda.py has the same with real ones.
"""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from tape import TapeRecorder
from test_no_sync import trainer_of

from expressive_losses import step as step_module
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.capture import STEPS_BEFORE, CannotCapture, CudaRecorder, Graphs
from expressive_losses.config import TrainingConfig
from expressive_losses.errors import UserError
from expressive_losses.registry import ATTACKS, LOSSES, MODELS
from expressive_losses.step import Radii, forward_batch, numbers_of
from expressive_losses.trainer import Trainer
from expressive_losses.types import Clock

#: One epoch, 23 batches of 60 and one of 57: warm-up on clean images, warm-up on attacked ones, ramp, end.
SETTINGS = (
    "training.batch_size=60", "training.epochs=1", "model.width=2", "model.hidden=4",
    "eps.schedule={name: smoothed, warmup: 12, attack_warmup: 6, length: 6, unit: steps}",
    "optimizer={name: adam, lr: 0.01}", "lr_schedule={name: cosine, length: 1}",
)  # fmt: skip


ALL_STEPS, FEW = 24, STEPS_BEFORE + 3


class OneByOne(Graphs):
    """The same numbers as tensors, and no graphs."""

    def _run(self, structure, work):
        return work()


def steps_of(trainer: Trainer, graphs: Graphs, count: int) -> list[dict[str, torch.Tensor]]:
    """What each step of a training returned."""
    trainer.updates.graphs = graphs
    order = trainer.train.epoch_order(0, 0)
    found = []
    for trainer.step in range(count):
        indices = trainer.train.order_of_step(order, trainer.step, 60)
        found.append(trainer.train_step(indices, trainer.radii(trainer.step)))
    return found


def assert_same_training(folder, *assignments: str, count: int = ALL_STEPS) -> TapeRecorder:
    """The terms of every step and the weights at the end, bit for bit."""
    recorder, trainers = TapeRecorder(), []
    for name in ("one by one", "graphs"):
        torch.manual_seed(0)
        trainers.append(trainer_of(folder / name, *SETTINGS, *assignments))
    expected = steps_of(trainers[0], OneByOne(recorder, 60, "cpu"), count)
    found = steps_of(trainers[1], Graphs(recorder, 60, "cpu"), count)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), f"{name} of step {number}"
    states = [trainer.network.state_dict() for trainer in trainers]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    return recorder


@pytest.mark.parametrize("method", [*LOSSES.names(), "{name: crown_ibp, fused: true, kappa_start: 0}"])
def test_every_method_trains_the_same_from_graphs(tmp_path, method):
    recorder = assert_same_training(tmp_path, f"method={method}")
    assert recorder.recorded >= 1
    assert recorder.prepared == STEPS_BEFORE * recorder.recorded


def test_a_graph_for_each_structure(tmp_path):
    """MTL-IBP: warm-up, warm-up on attacked images, ramp, end; the last, smaller batch is not from a graph."""
    assert assert_same_training(tmp_path).recorded == 4


CONSTANT = ("eps.schedule={name: constant}", "training.shi.weight=0")


@pytest.mark.parametrize("attack", ATTACKS.names())
def test_so_does_every_attack(tmp_path, attack):
    steps = ["attack.steps=3"] if "steps" in ATTACKS.build(attack).model_dump() else []
    assert_same_training(tmp_path, f"attack={{name: {attack}}}", *steps, *CONSTANT, count=FEW)


@pytest.mark.parametrize(
    "setting",
    ["training.bn_statistics=clean", "training.bn_statistics=clean_frozen", "training.clip_norm=0.01",
     "optimizer={name: adamw}", "optimizer={name: sgd, lr: 0.01}", "data.flip=true", "model={name: mlp, hidden: [8]}",
     "method={name: ibp, kappa_start: 0, kappa_end: 0.5}", "method={name: crown_ibp, kappa_start: 0, kappa_end: 1}"],
)  # fmt: skip
def test_and_other_settings(tmp_path, setting):
    ramp = "eps.schedule={name: linear, length: 20, unit: steps}"
    frozen = ["training.accumulate=2"] if "frozen" in setting else []
    assert_same_training(tmp_path, setting, ramp, *frozen, count=FEW)


@pytest.mark.parametrize("method", LOSSES.names())
def test_numbers_as_tensors_are_pythons_numbers(method):
    """Numbers that float32 holds exactly: then not even rounding differs."""
    found = [gradients(method, as_tensors) for as_tensors in (False, True)]
    for python, tensor in zip(*found, strict=True):
        torch.testing.assert_close(tensor, python, rtol=1e-6, atol=1e-8)


def gradients(method: str, as_tensors: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS.build({"name": "cnn_tiny", "width": 4, "hidden": 8}).build((1, 8, 8), 4)
    network = BoundedNetwork(model, (1, 8, 8), 4)
    x, labels = torch.rand(8, 1, 8, 8), torch.randint(4, (8,))
    loss, parameters = LOSSES.build(method), list(network.parameters())
    radii = Radii(0.125, 0.25, 0.5, 4, Clock(4, 4), 8)
    if as_tensors:
        radii = replace(radii, numbers={name: torch.tensor(n) for name, n in numbers_of(loss, radii).items()})
    noise = torch.Generator().manual_seed(1)
    batch, terms = forward_batch(network, loss, ATTACKS.build("fgsm"), x, labels, radii, TrainingConfig(), noise)
    terms |= loss.backward(batch, terms, parameters, loss.memory(parameters))
    return [terms["total"].detach(), *(p.grad for p in parameters)]


@pytest.mark.parametrize("name", ["lr", "bounded", "attacked", "fraction"])
def test_a_loss_cannot_replace_a_number_of_the_step(name):
    """It would train with that as its learning rate, on a GPU only."""
    loss = type("Greedy", (type(LOSSES.build("ibp")),), {"scheduled": lambda self, now: {name: 7.0}})()
    with pytest.raises(UserError, match=f"may not return '{name}', each step has one; rename it"):
        numbers_of(loss, Radii(0.1, 0.1, 0.5))


def test_a_graph_would_repeat_a_number_of_the_host():
    """What all this is about: the tape that stands for a graph does it too."""
    host = [1.0]
    graphs = Graphs(TapeRecorder(), 2, "cpu")

    def work(indices, numbers):
        return {"given": 2 * numbers["a"], "baked": torch.ones(()) * host[0], "images": indices.sum()}

    for host[0] in range(6):
        found = graphs.run("structure", work, torch.tensor([host[0], 1]), {"a": float(host[0])})
    assert (float(found["given"]), int(found["images"])) == (10.0, 6)
    assert float(found["baked"]) == STEPS_BEFORE


def test_a_step_that_cannot_be_captured_is_done_without(tmp_path, monkeypatch):
    """The one of which it is found out included."""
    monkeypatch.setattr(step_module, "shi_regularizer", lambda bounds, *_: bounds.margins.sum().item() * torch.ones(()))
    trainer = trainer_of(tmp_path, *SETTINGS, "eps.schedule={name: linear, length: 20, unit: steps}")
    with pytest.warns(UserWarning, match="cannot be captured: _local_scalar_dense reads a value"):
        found = steps_of(trainer, Graphs(TapeRecorder(), 60, "cpu"), FEW)
    assert trainer.updates.graphs is None
    assert len(found) == FEW
    assert all(torch.isfinite(terms["total"]) for terms in found)


def test_a_captured_training_goes_on_without_a_gpu(tmp_path):
    """The optimiser's settings are those of the place: no tensor for a learning rate, nothing capturable."""
    settings = (*SETTINGS, *CONSTANT)
    trainer = trainer_of(tmp_path / "captured", *settings)
    steps_of(trainer, Graphs(TapeRecorder(), 60, "cpu"), FEW)
    state = trainer.updates.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["capturable"] = True
    other = trainer_of(tmp_path / "plain", *settings)
    other.updates.load_state_dict(state)
    (group,) = other.updates.optimizer.param_groups
    assert (group["lr"], group["capturable"]) == (0.01, False)
    assert float(other.updates.optimizer.state_dict()["state"][0]["step"]) == FEW


def test_insisting_where_there_can_be_no_graph(tmp_path):
    with pytest.raises(UserError, match="the device is no CUDA GPU; set it to auto"):
        trainer_of(tmp_path, "training.capture=always")
    assert trainer_of(tmp_path, "training.capture=auto").updates.graphs is None


class FailingGraph:
    """torch's context for a capture: it makes its stream the current one, and its end fails where an operation has."""

    def __init__(self, graph, pool, stream):
        self.stream = stream

    def __enter__(self):
        torch.cuda.set_stream(self.stream)

    def __exit__(self, kind, *_):
        if kind is None:
            return
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_failed_capture_says_why_and_leaves_the_stream(monkeypatch):
    """With stand-ins for torch's: what CUDA itself does then is in tests/test_cuda.py."""
    at, ended = ["default"], []
    fakes = {
        "graph_pool_handle": lambda: (0, 1), "graph": FailingGraph, "set_stream": at.append, "CUDAGraph": mock.Mock,
        "Stream": lambda device: SimpleNamespace(device=torch.device("cuda", 0)), "current_stream": lambda _: at[-1],
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: ended.append((name, *given)), raising=False)

    def work():
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")

    with pytest.raises(CannotCapture, match="^operation not permitted when stream is capturing$"):
        CudaRecorder(SimpleNamespace(device=torch.device("cuda", 0))).record(work)
    assert at[-1] == "default" and len(at) == 3
    assert ended == [("_cuda_endAllocateToPool", 0, (0, 1)), ("_cuda_releasePool", 0, (0, 1))]
