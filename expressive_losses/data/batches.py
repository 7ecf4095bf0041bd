"""Batches for training and evaluation, cut on the device that holds the data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from expressive_losses.data.augment import Augmentation, augmented
from expressive_losses.data.base import ImageData
from expressive_losses.errors import UserError


class Batches:
    """A data set on a device as uint8, and batches of it as float32 in [0, 1].

    Nothing here has a state: the order is a function of (seed, epoch), and augmentation draws from the
    generator it is given.

    Args:
        data: the images.
        augmentation: of training batches.
        device: where the data are kept and batches are made.
    """

    def __init__(
        self, data: ImageData, augmentation: Augmentation | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.data = data.to(device)
        self.augmentation = augmentation or Augmentation()
        self.device = self.data.images.device

    def __len__(self) -> int:
        return len(self.data)

    def epoch_order(self, seed: int, epoch: int) -> Tensor:
        """Return the permutation of this epoch, (N,) int64 on the device.

        It is a pure function of (seed, epoch), the same on any device.

        Args:
            seed, epoch: non-negative.
        """
        mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))  # a seed has 63 bits and a sign
        return torch.randperm(len(self), generator=generator).to(self.device)

    def steps_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """Return the number of batches in an epoch.

        The last, incomplete batch is used, as in the published code, unless it holds a single image:
        BatchNorm has no variance over one image, so that batch is dropped (another image each epoch).

        Args:
            batch_size: images a batch.
            drop_last: leave out any incomplete batch.

        Raises:
            UserError: when that leaves no batch.
        """
        full, rest = divmod(len(self), batch_size)
        least = batch_size if drop_last else min(2, batch_size)
        steps = full + (rest >= least)
        if steps == 0:
            raise UserError(f"{len(self)} training images do not fill one batch of {batch_size}; lower the batch size")
        return steps

    def order_of_step(self, order: Tensor, step: int, batch_size: int) -> Tensor:
        """Return the indices of batch ``step`` (from 0) of an epoch, at most ``batch_size`` of them."""
        return order[step * batch_size : (step + 1) * batch_size]

    def batch(
        self, indices: Tensor, generator: torch.Generator | None = None, augment: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W), float32 in [0, 1], and labels (B,), int64, on the device.

        Args:
            indices: (B,) int64.
            generator: for the augmentation, on the same device.
            augment: apply the augmentation; evaluation does not.
        """
        indices = indices.to(self.device)
        if augment and self.augmentation:
            images = augmented(self.data.images, indices, self.augmentation, generator)
        else:
            images = self.data.images[indices]
        return images.to(torch.float32) / self.data.scale, self.data.labels[indices]

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, not augmented: for evaluation and population statistics."""
        for start in range(0, len(self), batch_size):
            indices = torch.arange(start, min(start + batch_size, len(self)), device=self.device)
            yield self.batch(indices, augment=False)
