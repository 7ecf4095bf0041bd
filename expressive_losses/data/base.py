"""What a data set is: images as uint8 with labels, checked once when they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from expressive_losses.data.augment import Augmentation, CropMode
from expressive_losses.errors import UserError
from expressive_losses.registry import Plugin

Split = Literal["train", "test"]
ROOT_VARIABLE = "EXPRESSIVE_LOSSES_DATA"


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one split. Build it with :meth:`checked`.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 in [0, classes).
        classes: number of classes K.
        scale: what a pixel of 1.0 is stored as: images / scale is in [0, 1]. 255, but 16 for the digits.
    """

    images: Tensor
    labels: Tensor
    classes: int
    scale: float = 255.0

    @classmethod
    def checked(cls, images: Any, labels: Any, classes: int, scale: float = 255.0, source: str = "data") -> ImageData:
        """Return the data as tensors, or say what is wrong with them.

        Args:
            images: array or tensor (N, C, H, W) of uint8.
            labels: array or tensor (N,) of integers in [0, classes).
            classes: K.
            scale: see the attribute.
            source: what to call the data in messages.

        Raises:
            UserError: wrong dtype, dimension or length, a label out of range, a pixel above ``scale``, or no
                image at all.
        """
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        if images.dtype != torch.uint8:
            raise UserError(f"{source}: images must be uint8 (0 to {scale:g}), got {_dtype(images)}")
        if images.dim() != 4:
            raise UserError(f"{source}: images must have shape (N, C, H, W), got {tuple(images.shape)}")
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(f"{source}: labels must be N integers, got {_dtype(labels)} of shape {tuple(labels.shape)}")
        if len(images) != len(labels):
            raise UserError(f"{source}: {len(images)} images but {len(labels)} labels")
        if not images.numel():
            raise UserError(f"{source}: there is no image in it, the shape is {tuple(images.shape)}")
        labels = labels.long()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise UserError(f"{source}: labels must be in 0..{classes - 1}, got {low}..{high}")
        if scale <= 0 or int(images.max()) > scale:
            raise UserError(f"{source}: pixels go up to {int(images.max())}, above the scale {scale:g}")
        return cls(images.contiguous(), labels, classes, float(scale))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> ImageData:
        """Return a part of the data: a slice or a tensor of indices."""
        return ImageData(self.images[index], self.labels[index], self.classes, self.scale)

    def to(self, device: torch.device | str) -> ImageData:
        """Return the data on a device, still as uint8."""
        return ImageData(self.images.to(device), self.labels.to(device), self.classes, self.scale)


class Dataset(Plugin):
    """Base of the data sets: their constants are class attributes, what a user may change are fields.

    Args:
        mean, std: per channel in pixel units; normalisation is part of the network, data stay in [0, 1].
        flip, crop_padding, crop_mode: the augmentation of training images, see :class:`Augmentation`.

    Attributes:
        shape: (C, H, W), or None where only the files tell.
        classes: K, or None where only the files tell.
        source: one line: which files belong where under the data root.
        defaults: what a config of this data set contains unless it says otherwise (model, eps, ...).
    """

    shape: ClassVar[tuple[int, int, int] | None] = None
    classes: ClassVar[int | None] = None
    source: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flip: bool = False
    crop_padding: NonNegativeInt = 0
    crop_mode: CropMode = "constant"

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(self.flip, self.crop_padding, self.crop_mode)

    def load(self, root: Path | str | None, split: Split) -> ImageData:
        """Read one split into memory.

        Args:
            root: the data root; None means $EXPRESSIVE_LOSSES_DATA, or ./data.
            split: "train" or "test" (the validation set where no labelled test set is published).

        Raises:
            UserError: files are missing (says where they belong) or damaged.
        """
        if split not in ("train", "test"):
            raise UserError(f"data set '{self.name}': the split is 'train' or 'test', got '{split}'")
        return self.read(data_root(root), split)

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split from the files under ``root``: what a data set implements."""
        raise NotImplementedError

    def missing(self, path: Path, hint: str = "") -> UserError:
        """Return the error that says that ``path`` is not there and what to do."""
        return UserError(f"data set '{self.name}': {path} not found; {self.source}{hint}")


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder that holds the data sets: the argument, else $EXPRESSIVE_LOSSES_DATA, else ./data."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
