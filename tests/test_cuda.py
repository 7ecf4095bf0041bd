"""On a GPU: a step equals the CPU's, and never waits for the device. Skipped without one; run with ``-m gpu``."""

import pytest
import torch
from test_no_sync import trainer_of

from expressive_losses.data.batches import Batches
from expressive_losses.registry import LOSSES
from expressive_losses.trainer import Trainer

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


@pytest.mark.parametrize("method", LOSSES.names())
def test_a_step_of_every_method_never_waits(tmp_path, method):
    trainer = moved(trainer_of(tmp_path, f"method={method}"), tmp_path)
    order = trainer.train.epoch_order(0, 0)
    for epoch in (0, 1, 3):
        trainer.step = epoch * trainer.steps_per_epoch + 2
        indices, radii = trainer.train.order_of_step(order, 1, 32), trainer.radii(trainer.step)
        trainer.train_step(indices, radii)  # traces, and loads kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer._add(trainer.train_step(indices, radii))
        finally:
            torch.cuda.set_sync_debug_mode("default")


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
