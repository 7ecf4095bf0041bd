"""Random flips and crops of a whole batch in one gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CropMode = Literal["constant", "edge"]


@dataclass(frozen=True)
class Augmentation:
    """What training images are put through; the default is nothing.

    Attributes:
        flip: mirror left-right with probability 1/2.
        crop_padding: pixels added on every side before a crop of the original size at a uniform offset.
        crop_mode: padding by zeros ("constant") or by the border pixels ("edge").
    """

    flip: bool = False
    crop_padding: int = 0
    crop_mode: CropMode = "constant"

    def __bool__(self) -> bool:
        return self.flip or self.crop_padding > 0


def augmented(images: Tensor, indices: Tensor, how: Augmentation, generator: torch.Generator | None) -> Tensor:
    """Return the images at ``indices``, each flipped and cropped at random.

    No loop over images and no host synchronisation.

    Args:
        images: all of them, (N, C, H, W), any dtype.
        indices: (B,) int64 on the device of the images.
        how: the augmentation.
        generator: on the device of the images; None takes the device's global one.

    Returns:
        (B, C, H, W), same dtype: pixel values are moved, never mixed.
    """
    batch, pad = len(indices), how.crop_padding
    shift = _draw(2 * pad + 1, (2, batch), images.device, generator) - pad
    mirror = _draw(2, (batch,), images.device, generator).bool() if how.flip else None
    return shifted(images, indices, shift[0], shift[1], mirror, how.crop_mode)


def shifted(
    images: Tensor, indices: Tensor, down: Tensor, right: Tensor, mirror: Tensor | None, crop_mode: CropMode
) -> Tensor:
    """Return windows of the padded images at given offsets, mirrored where asked for.

    Output pixel (i, j) of sample b is pixel (i + down[b], j' + right[b]) of its image, with j' = W-1-j where
    mirrored, else j.

    Args:
        images: (N, C, H, W).
        indices, down, right: (B,) int64: which image, and by how many pixels its window moves.
        mirror: (B,) bool, or None for no mirroring.
        crop_mode: what lies outside of the image.
    """
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device).expand(len(indices), -1)
    if mirror is not None:
        columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = columns + right[:, None]
    inside_rows, inside_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    channels = torch.arange(images.shape[1], device=images.device)
    out = images[
        indices[:, None, None, None],
        channels[None, :, None, None],
        inside_rows[:, None, :, None],
        inside_columns[:, None, None],
    ]
    if crop_mode == "edge":
        return out  # a coordinate clamped to the image is the edge padding
    inside = (rows == inside_rows)[:, None, :, None] & (columns == inside_columns)[:, None, None]
    return out * inside


def _draw(below: int, size: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randint(below, size, generator=generator, device=device)
