"""On a GPU: a step equals the CPU's, never waits for the device, and is the same from a CUDA graph.

Skipped without one; run with ``-m gpu``.
"""

import pytest
import torch
from test_capture import ALL_STEPS, SETTINGS, OneByOne, steps_of
from test_no_sync import trainer_of

from expressive_losses import distributed
from expressive_losses.bounds.kernels import batch_norm
from expressive_losses.capture import STEPS_BEFORE, CudaRecorder
from expressive_losses.data.batches import Batches
from expressive_losses.precision import exact_float32, training_precision
from expressive_losses.registry import LOSSES
from expressive_losses.trainer import Trainer
from expressive_losses.updates import Updates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moved(trainer: Trainer, folder) -> Trainer:
    """The same training on the GPU, from the same weights."""
    train, held_out = (
        Batches(batches.data, batches.augmentation, "cuda") for batches in (trainer.train, trainer.held_out)
    )
    weights = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    other = Trainer(trainer.config, trainer.network.cuda(), train, held_out, trainer.run, quiet=True)
    other.network.load_state_dict(weights)
    return other


@pytest.mark.parametrize("capture", ["never", "auto"])
@pytest.mark.parametrize("method", LOSSES.names())
def test_a_step_of_every_method_never_waits(tmp_path, method, capture):
    settings = (f"method={method}", "training.batch_size=32", f"training.capture={capture}")
    trainer = moved(trainer_of(tmp_path, *settings), tmp_path)
    order = trainer.train.epoch_order(0, 0)
    for epoch in (0, 1, 3):
        trainer.step = epoch * trainer.steps_per_epoch + 2
        indices, radii = trainer.train.order_of_step(order, 1, 32), trainer.radii(trainer.step)
        for _ in range(STEPS_BEFORE + 2):  # loads kernels, records
            trainer.train_step(indices, radii)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer._add(trainer.train_step(indices, radii))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 5, 5)])
def test_batch_norm_over_several_processes_is_the_cpus(monkeypatch, shape):
    """CUDA's kernel for its gradient wants statistics that the CPU's does not look at. Here, each has the whole."""
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    x, to_y, scale = torch.rand(shape), torch.rand(shape), torch.rand(6)
    found = []
    for device in ("cpu", "cuda"):
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        tensors = [x.to(device, memory_format=layout, copy=True), scale.to(device, copy=True), -scale.to(device)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        y, (mean, variance) = batch_norm(*tensors, 1e-5)
        loss = (y * to_y.to(device)).sum() + mean.square().sum() + variance.square().sum()
        found.append([value.cpu() for value in (y.detach(), *torch.autograd.grad(loss, tensors))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_update_that_cannot_be_captured_leaves_the_gpu_as_it_was(tmp_path, monkeypatch):
    """It runs one by one from then on, the reason is named, and another one can be captured."""
    trainer = moved(trainer_of(tmp_path, "method=mtl_ibp", "training.batch_size=32"), tmp_path)
    order, whole = trainer.train.epoch_order(0, 0), Updates._update

    def waiting(*given):
        terms = whole(*given)
        float(terms["total"])
        return terms

    def steps():
        for _ in range(STEPS_BEFORE + 2):
            trainer.train_step(trainer.train.order_of_step(order, 1, 32), trainer.radii(trainer.step))

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be captured: .*capturing"):
        patch.setattr(Updates, "_update", waiting)
        steps()
    assert trainer.updates.graphs is None
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    trainer.updates = Updates(trainer.config, trainer.network, trainer.train)
    steps()
    assert trainer.updates.graphs is not None


@pytest.mark.parametrize("method", ["mtl_ibp", "sabr", "ibp", "crown_ibp"])
def test_a_step_equals_the_cpus(tmp_path, method):
    """Without noise: generators of two devices draw different numbers."""
    settings = (f"method={method}", "attack={name: none}")
    cpu = trainer_of(tmp_path / "cpu", *settings)
    gpu = moved(trainer_of(tmp_path / "gpu", *settings), tmp_path)
    gpu.network.load_state_dict(cpu.network.state_dict())
    for trainer in (cpu, gpu):
        trainer.step = trainer.steps_per_epoch + 2
        indices = torch.arange(64, device=trainer.train.device)
        trainer.terms = trainer.train_step(indices, trainer.radii(trainer.step))
    for name, value in cpu.terms.items():
        torch.testing.assert_close(gpu.terms[name].cpu(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", LOSSES.names())
def test_every_method_trains_the_same_from_cuda_graphs(tmp_path, method):
    """Through warm-up, ramp and end, with random starts: graphs draw what steps one by one would.

    Not bit for bit: sums that kernels make with atomic operations differ from run to run.
    """
    found = []
    for name in ("one by one", "graphs"):
        torch.manual_seed(0)
        settings = (*SETTINGS, f"method={method}", "optimizer={name: sgd, lr: 0.01}")
        trainer = moved(trainer_of(tmp_path / name, *settings), tmp_path)
        updates = trainer.updates
        plain = OneByOne(CudaRecorder(updates.generator), 60, "cuda")
        found.append(steps_of(trainer, plain if name == "one by one" else updates.graphs, ALL_STEPS))
        assert updates.graphs is not None, "could not be captured"
    for step, (theirs, ours) in enumerate(zip(*found, strict=True)):
        assert float(ours["total"]) == pytest.approx(float(theirs["total"]), rel=2e-2), f"step {step}"


def test_flags_of_tensor_float32_reach_the_gpu():
    """In float32 a product differs from float64's by rounding; TensorFloat-32 is a thousand times as far off."""
    a = torch.randn(512, 512, device="cuda")
    exact = (a.double() @ a.double()).float()
    errors = {}
    for precision in ("float32", "tf32"):
        with training_precision(precision):
            errors[precision] = float((a @ a - exact).abs().max())
    with training_precision("tf32"), exact_float32():
        assert float((a @ a - exact).abs().max()) < 2 * errors["float32"]
    assert errors["tf32"] > 10 * errors["float32"]
