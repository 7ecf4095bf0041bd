"""Hold out a part of the training images."""

from __future__ import annotations

import numpy as np
import torch

from expressive_losses.data.base import ImageData
from expressive_losses.errors import UserError


def split_validation(data: ImageData, held_out: float | int, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Split data in two, each with the classes in the proportions of the whole; the test set plays no part.

    Which images of a class are held out is a permutation by ``numpy.random.RandomState(seed)``, whose stream
    is guaranteed never to change. Both parts keep the order of the data.

    Args:
        data: the training images.
        held_out: a fraction in (0, 1), or a number of images (an integer).
        seed: picks the images.

    Returns:
        (train, validation).

    Raises:
        UserError: when either part would be empty.
    """
    count = held_out if isinstance(held_out, int) else round(held_out * len(data))
    if not 0 < count < len(data):
        raise UserError(
            f"validation split: expected a fraction in (0, 1) or a number of images below {len(data)}, got {held_out}"
        )
    labels = data.labels.cpu().numpy()
    random = np.random.RandomState(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, share in enumerate(_shares(np.bincount(labels, minlength=data.classes), count)):
        chosen[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    chosen = torch.from_numpy(chosen).to(data.labels.device)
    return data[~chosen], data[chosen]


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return how many of each class to take: proportional, by largest remainder (ties: lower class)."""
    exact = sizes * (count / sizes.sum())
    shares = np.floor(exact).astype(int)
    remainder = np.argsort(shares - exact, kind="stable")
    shares[remainder[: count - shares.sum()]] += 1
    return shares
