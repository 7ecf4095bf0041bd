"""Data sets in NumPy archives: imagenet64, and arrays of your own."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from expressive_losses.data.augment import CropMode
from expressive_losses.data.base import Dataset, ImageData, Split
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS


@DATASETS.register("tensors")
class Tensors(Dataset):
    """Arrays of your own: an .npz file with x_train, y_train, x_test, y_test.

    Images are uint8 (N, C, H, W), or (N, H, W) when grey; labels are integers from 0.

    Args:
        path: the .npz file, absolute or relative to the data root.
        num_classes: K; by default the largest label of both splits plus one.
        scale: what a pixel of value 1.0 is stored as.
    """

    source = "name an .npz file with x_train, y_train, x_test, y_test: --set data.path=FILE"

    path: str = ""
    num_classes: PositiveInt | None = None
    scale: PositiveFloat = 255.0

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split from the archive."""
        path = root / self.path
        if not self.path or not path.is_file():
            raise self.missing(path)
        images, labels, y_train, y_test = read_npz(path, (f"x_{split}", f"y_{split}", "y_train", "y_test"))
        classes = self.num_classes or 1 + max((int(y.max()) for y in (y_train, y_test) if y.size), default=0)
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
            raise UserError(
                f"{path}: images of shape {images.shape} look like (N, H, W, C); expected (N, C, H, W), e.g. by "
                "x.transpose(0, 3, 1, 2)"
            )
        return ImageData.checked(images, labels, classes, self.scale, source=f"{path} ({split})")


@DATASETS.register("imagenet64")
class ImageNet64(Dataset):
    """Downsampled ImageNet: 1281167 and 50000 colour images of 64x64 pixels in 1000 classes.

    From the npz files of image-net.org ("Downsampled image data, npz format"); the pickled variant is not
    read, because a pickle can run code. "test" is the validation set, as in the papers. The training images
    take 15.7 GB of memory.
    """

    shape = (3, 64, 64)
    classes = 1000
    source = "put train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz into <data root>/imagenet64"

    mean: tuple[float, ...] = (0.4815, 0.4578, 0.4082)
    std: tuple[float, ...] = (0.2153, 0.2111, 0.2121)
    flip: bool = True
    crop_padding: NonNegativeInt = 4
    crop_mode: CropMode = "edge"

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split, batch file by batch file; labels 1..1000 become 0..999."""
        names = ["val_data"] if split == "test" else [f"train_data_batch_{number}" for number in range(1, 11)]
        paths = [root / "imagenet64" / f"{name}.npz" for name in names]
        for path in paths:
            if not path.is_file():
                raise self.missing(path, "; the pickled files will not do, take the npz ones")
        labels = np.concatenate([read_npz(path, ("labels",))[0] for path in paths]).astype(np.int64) - 1
        images = np.empty((len(labels), *self.shape), dtype=np.uint8)  # filled in place: never two copies of it all
        start = 0
        for path in paths:
            (data,) = read_npz(path, ("data",))
            if data.dtype != np.uint8 or data.shape[1:] != (images[0].size,):
                raise UserError(
                    f"{path}: expected uint8 rows of {images[0].size} pixels, got {data.dtype} {data.shape}"
                )
            images[start : start + len(data)] = data.reshape(-1, *self.shape)
            start += len(data)
        return ImageData.checked(images, labels, self.classes, source=f"data set '{self.name}' ({split})")


def read_npz(path: Path, keys: Sequence[str]) -> list[np.ndarray]:
    """Return arrays of an .npz file, never unpickling.

    Raises:
        UserError: the file is damaged, a key is missing, or an array holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [key for key in keys if key not in archive.files]
            if absent:
                raise UserError(
                    f"{path}: array '{absent[0]}' is missing; it holds {', '.join(archive.files) or 'nothing'}"
                )
            return [archive[key] for key in keys]
    except (
        ValueError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        TypeError,
        AttributeError,
    ) as error:
        reason = "it holds Python objects, or is something else" if "pickle" in str(error) else error
        raise UserError(f"{path}: cannot be read as an .npz file of numbers ({reason})") from None
