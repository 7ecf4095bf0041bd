"""CIFAR-10, CIFAR-100 and SVHN: 32x32 colour images, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeInt

from expressive_losses.data.augment import CropMode
from expressive_losses.data.base import Dataset, ImageData, Split
from expressive_losses.data.download import torchvision_dataset
from expressive_losses.registry import DATASETS


class Cifar(Dataset):
    """Base: the python version of the archive; torchvision checks its MD5 before it unpickles anything.

    Args:
        download: fetch the archive when it is missing, or unpack it when it is there.
    """

    shape = (3, 32, 32)
    torchvision_class: ClassVar[str]

    flip: bool = True
    crop_padding: NonNegativeInt = 2
    crop_mode: CropMode = "edge"
    download: bool = False

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split from the batch files."""
        found = torchvision_dataset(self, self.torchvision_class, root, self.download, train=split == "train")
        images = found.data.transpose(0, 3, 1, 2)
        return ImageData.checked(images, found.targets, self.classes, source=f"data set '{self.name}' ({split})")


@DATASETS.register("cifar10")
class Cifar10(Cifar):
    """CIFAR-10: 50000 and 10000 colour images of 32x32 pixels."""

    classes = 10
    torchvision_class = "CIFAR10"
    source = "unpack cifar-10-python.tar.gz to <data root>/cifar-10-batches-py"

    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)


@DATASETS.register("cifar100")
class Cifar100(Cifar):
    """CIFAR-100: 50000 and 10000 colour images of 32x32 pixels in 100 classes."""

    classes = 100
    torchvision_class = "CIFAR100"
    source = "unpack cifar-100-python.tar.gz to <data root>/cifar-100-python"

    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409)
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762)


@DATASETS.register("svhn")
class Svhn(Dataset):
    """SVHN: 73257 and 26032 house-number digits, 32x32 colour; shifted but not mirrored in training.

    Args:
        download: fetch missing files.
    """

    shape = (3, 32, 32)
    classes = 10
    source = "put train_32x32.mat and test_32x32.mat into <data root>/svhn"

    mean: tuple[float, ...] = (0.4377, 0.4438, 0.4728)
    std: tuple[float, ...] = (0.1980, 0.2010, 0.1970)
    crop_padding: NonNegativeInt = 2
    crop_mode: CropMode = "edge"
    download: bool = False

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split from the MATLAB file; its label 10 is the digit 0."""
        found = torchvision_dataset(self, "SVHN", root / "svhn", self.download, split=split)
        return ImageData.checked(found.data, found.labels, self.classes, source=f"data set '{self.name}' ({split})")
