"""The training loop: one flat sequence of steps, each a pure function of (config, step, weights).

Data order, augmentation and attack noise are derived from (seed, step), so a run killed at any moment and
resumed gives the same weights, bit for bit on a CPU, as one that was never interrupted.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expressive_losses import checkpoint, distributed
from expressive_losses.averaging import WeightAverage
from expressive_losses.bounds import BoundedNetwork, refresh_population_statistics
from expressive_losses.config import Config, differences
from expressive_losses.data.batches import Batches
from expressive_losses.errors import Diverged, Interrupted, UserError
from expressive_losses.evaluate import accuracies
from expressive_losses.initialize import shi_initialize
from expressive_losses.precision import exact_float32
from expressive_losses.progress import TrainingProgress
from expressive_losses.run import RunDirectory
from expressive_losses.schedules import Clock
from expressive_losses.step import Radii
from expressive_losses.types import Box
from expressive_losses.updates import Updates, mixed_seed

#: Between two questions of several processes to each other whether one of them was told to stop.
_STEPS_BETWEEN_QUESTIONS = 16


@dataclass
class Trainer:
    """Trains one network.

    Args:
        config: the experiment.
        network: on its device; weights are changed in place.
        train: training images, on the same device.
        held_out: images that metrics are reported on (validation, or test when there is no validation split).
        run: where everything is written.
        stop: asked after every step; true means write a checkpoint and raise :class:`Interrupted`.
    """

    config: Config
    network: BoundedNetwork
    train: Batches
    held_out: Batches
    run: RunDirectory
    stop: Callable[[], bool] = lambda: False
    quiet: bool = False
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        training = self.config.training
        self.steps_per_epoch = self.train.steps_per_epoch(training.batch_size)
        self.steps = training.epochs * self.steps_per_epoch
        self.clock = Clock(self.steps_per_epoch, training.epochs)
        if training.initialize == "shi":
            shi_initialize(self.network, after_sums=self.network.weights_after_sums())
        distributed.take_from_first(self.network.state_dict().values())  # GPUs of two kinds draw other numbers
        self.updates = Updates(self.config, self.network, self.train)
        self.average = WeightAverage(training.average, self.network)
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.seconds = 0.0

    def fit(self) -> None:
        """Train to the last epoch, or raise. The network then has the averaged weights, if an average was asked for.

        Raises:
            UserError: when a loss is no longer finite; the last checkpoint is from before.
            Interrupted: when ``stop`` said so.
        """
        progress = TrainingProgress(self.steps, self.step, self.steps_per_epoch, self.quiet)
        started = time.monotonic() - self.seconds
        order, order_epoch = None, -1
        try:
            while self.step < self.steps:
                epoch, index = divmod(self.step, self.steps_per_epoch)
                if epoch != order_epoch:
                    order, order_epoch = self.train.epoch_order(self.config.training.seed, epoch), epoch
                radii = self.radii(self.step)
                self._add(
                    self.train_step(self.train.order_of_step(order, index, self.config.training.batch_size), radii)
                )
                self.step += 1
                self.average.update(self.step / self.steps_per_epoch, index + 1 == self.steps_per_epoch)
                self.seconds = time.monotonic() - started
                if progress.due():
                    progress.show(self.step, radii.bounded, self._means())
                if index + 1 == self.steps_per_epoch:
                    self._end_epoch(epoch + 1, progress)
                if self._stopped() and self.step < self.steps:
                    self.run.save(self.state())
                    raise Interrupted
            self.average.apply(self._refresh)
        finally:
            progress.close()

    def _stopped(self) -> bool:
        """Return whether to stop now. Several processes agree on it, every few steps: asking takes time."""
        asked = self.stop()
        if distributed.processes() == 1 or self.step % _STEPS_BETWEEN_QUESTIONS:
            return asked and distributed.processes() == 1
        return distributed.any_process(asked, self.train.device)

    def radii(self, step: int) -> Radii:
        """Return the radii of a step: target * multiplier * progress of the ramp, and that times the attack factor."""
        eps, clock = self.config.eps, self.clock
        full, fraction = float(eps.target) * eps.train_multiplier, eps.schedule.fraction(step, clock)
        attacked = full * eps.attack_factor * eps.schedule.attack_fraction(step, clock)
        return Radii(full * fraction, attacked, fraction, step, clock, eps.schedule.end(clock))

    def train_step(self, indices: Tensor, radii: Radii) -> dict[str, Tensor]:
        """Do one update on the images of these indices; return its scalars, detached and still on the device."""
        return self.updates(self.step, indices, radii)

    @exact_float32()
    def _refresh(self) -> None:
        """Compute BatchNorm's running statistics anew over the training set, for the weights as they are.

        Over the batches that the bounds of training go with: clean ones and, under the policy "adversarial", attacked
        ones in turn, as the running averages saw them. Clean ones alone do not fit bounds trained under that policy
        (docs/differences.md). Several processes share the batches.
        """
        refresh_population_statistics(self.network, self._population(self.radii(self.step - 1).attacked))

    def _population(self, radius: float) -> Iterator[Tensor]:
        """Yield this process's batches, every so many-th: the noise on each depends on its number alone."""
        config, everything = self.config, torch.arange(len(self.train), device=self.train.device)
        attacked = config.training.bn_statistics == "adversarial" and "adv" in config.method.needs and radius > 0
        victim = copy.deepcopy(self.network.model).eval()  # the statistics of the network itself are being computed
        generator = torch.Generator(self.train.device)
        for number in range(distributed.rank(), self.steps_per_epoch, distributed.processes()):
            indices = self.train.order_of_step(everything, number, config.training.batch_size)
            x, labels = self.train.batch(indices, augment=False)
            generator.manual_seed(mixed_seed(config.training.seed, self.step, number + 1))
            yield x
            if attacked:
                yield config.attack(
                    lambda images: victim(self.network.normalize(images)),
                    Box.around(x, radius), labels, generator, start=x,
                )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return all that a resume needs, as tensors and plain values."""
        return {
            **checkpoint.describe(self.network, self.config),
            "training": {
                "step": self.step,
                "seconds": self.seconds,
                "totals": dict(self.totals),
                "counts": dict(self.counts),
                **self.updates.state_dict(),
                "average": self.average.state_dict(),
            },
        }

    def load_state(self, payload: dict[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            UserError: when the checkpoint is of another config.
        """
        changed = [key for key in differences(self.config, payload["config"]) if key != "paper"]
        if changed:
            raise UserError(
                f"{self.run.path}: the run was started with another config ({', '.join(changed)} differ); "
                "resume with the same one (--out and --resume alone take it), or choose another --out"
            )
        checkpoint.load_weights(self.network.model, payload["weights"], str(self.run.checkpoint))
        try:
            self._load_training(payload["training"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self.run.checkpoint}: not a state of training ({type(error).__name__}: {error}); "
                "is it a trained model? Choose another --out"
            ) from None
        self.run.keep_metrics(self.step // self.steps_per_epoch)

    def _load_training(self, training: dict[str, Any]) -> None:
        self.updates.load_state_dict(training)
        self.step, self.seconds = int(training["step"]), float(training["seconds"])
        if "average" in training:
            self.average.load_state_dict(training["average"])
        self.totals = {name: value.to(self.train.device) for name, value in training["totals"].items()}
        self.counts = dict(training.get("counts", {}))

    def _add(self, terms: dict[str, Tensor]) -> None:
        """Sum up on the device: reading a value would stall a GPU."""
        for name, value in terms.items():
            self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def _means(self) -> dict[str, float]:
        """Return the means since the epoch began; a term that came later counts from then on.

        Raises:
            Diverged: when the loss is not finite.
        """
        means = {name: float(value) / self.counts[name] for name, value in self.totals.items()}
        if not np.isfinite(means["total"]):
            broken = [name for name, value in means.items() if not np.isfinite(value)]
            raise Diverged(
                f"training diverged in epoch {(self.step - 1) // self.steps_per_epoch + 1} (step {self.step}): "
                f"{', '.join(broken)} not finite; {self._last_checkpoint()}. "
                "Try a lower optimizer.lr, a longer eps.schedule.length, or training.clip_norm"
            )
        return means

    def _last_checkpoint(self) -> str:
        exists = self.run.checkpoint.exists()
        return f"the last good checkpoint is {self.run.checkpoint}" if exists else "there was no checkpoint yet"

    def _end_epoch(self, epoch: int, progress: TrainingProgress) -> None:
        """Report and save; where several processes train, the first one does, and the others go on."""
        config, last = self.config.training, epoch == self.config.training.epochs
        row = {"epoch": epoch, "eps": self.radii(self.step - 1).bounded, "train": self._means()}
        self.totals, self.counts = {}, {}
        if config.bn_refresh:
            self._refresh()
        first = distributed.rank() == 0
        if epoch % config.evaluate_every == 0 or last:
            with self.average.applied(self._refresh):  # which takes all processes
                if first:
                    row["held_out"] = accuracies(self.network, self.held_out, float(self.config.eps.target))
        if not first:
            return
        self.run.log({**row, "seconds": round(self.seconds, 3)})
        progress.epoch(self.step, row)
        if epoch % config.checkpoint_every == 0 or last:
            self.run.save(self.state())
