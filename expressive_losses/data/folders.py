"""Data sets of image files in folders: tinyimagenet, and any folder of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from expressive_losses.data.augment import CropMode
from expressive_losses.data.base import Dataset, ImageData, Split
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}


@DATASETS.register("imagefolder")
class ImageFolder(Dataset):
    """A folder of your own: train/<class>/*.png and test/<class>/*.png, all images of one size.

    Classes are the folders of train/ in alphabetical order. The first training image decides between grey and
    colour.

    Args:
        path: the folder that holds train/ and test/, absolute or relative to the data root.
    """

    source = "expected train/<class>/*.png and test/<class>/*.png in the folder --set data.path=FOLDER"

    path: str = ""

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split; images of differing sizes are an error, nothing is resized."""
        folder = root / self.path
        classes = _subfolders(folder / "train", self)
        names = _subfolders(folder / split, self)
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise UserError(f"data set '{self.name}': class '{unknown[0]}' of {folder / split} has no folder in train/")
        paths, labels = [], []
        for name in names:
            found = _image_files(folder / split / name)
            paths += found
            labels += [classes.index(name)] * len(found)
        reference = next((path for name in classes for path in _image_files(folder / "train" / name)), None)
        if reference is None or not paths:
            raise self.missing(folder / ("train" if reference is None else split) / "<class>" / "*.png")
        images = read_images(paths, _mode(reference), self.name)
        return ImageData.checked(images, labels, len(classes), source=f"data set '{self.name}' ({split})")


@DATASETS.register("tinyimagenet")
class TinyImageNet(Dataset):
    """TinyImageNet: 100000 training and 10000 validation colour images of 64x64 pixels in 200 classes.

    The labels of its test images are not published: "test" is the validation folder, as in the papers.
    """

    shape = (3, 64, 64)
    classes = 200
    source = "unpack tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip) in the data root"

    mean: tuple[float, ...] = (0.4802, 0.4481, 0.3975)
    std: tuple[float, ...] = (0.2302, 0.2265, 0.2262)
    flip: bool = True
    crop_padding: NonNegativeInt = 4
    crop_mode: CropMode = "edge"

    def read(self, root: Path, split: Split) -> ImageData:
        """Read train/<wnid>/images, or val/images with val_annotations.txt (or val/<wnid>/)."""
        folder = root / "tiny-imagenet-200"
        classes = _subfolders(folder / "train", self)
        pairs = self._train(folder, classes) if split == "train" else self._validation(folder)
        unknown = next((name for _, name in pairs if name not in set(classes)), None)
        if unknown or not pairs:
            raise UserError(f"data set '{self.name}': {folder} is damaged ({unknown or 'no images'}); {self.source}")
        index = {name: label for label, name in enumerate(classes)}
        images = read_images([path for path, _ in pairs], "RGB", self.name)
        labels = [index[name] for _, name in pairs]
        return ImageData.checked(images, labels, self.classes, source=f"data set '{self.name}' ({split})")

    def _train(self, folder: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
        return [(path, name) for name in classes for path in _image_files(folder / "train" / name / "images")]

    def _validation(self, folder: Path) -> list[tuple[Path, str]]:
        annotations = folder / "val" / "val_annotations.txt"
        images = folder / "val" / "images"
        if annotations.is_file() and images.is_dir():
            rows = (line.split("\t") for line in annotations.read_text().splitlines() if line.strip())
            return [(images / row[0], row[1]) for row in rows]
        names = [name for name in _subfolders(folder / "val", self) if name != "images"]
        if not names:
            raise self.missing(annotations)
        return [(path, name) for name in names for path in _image_files(folder / "val" / name, deep=True)]


def read_images(paths: Sequence[Path], mode: str, name: str) -> np.ndarray:
    """Return image files as one array (N, C, H, W) of uint8.

    Args:
        paths: at least one.
        mode: "L" (grey) or "RGB"; files in another mode are converted.
        name: of the data set, for messages.

    Raises:
        UserError: a file is not an image, or its size differs from the first one's.
    """
    first = _decode(paths[0], mode)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def put(index: int) -> None:
        image = _decode(paths[index], mode)
        if image.shape != first.shape:
            size, expected = image.shape[:0:-1], first.shape[:0:-1]
            raise UserError(
                f"data set '{name}': {paths[index]} is {size[0]}x{size[1]} pixels but {paths[0].name} is "
                f"{expected[0]}x{expected[1]}; resize the images to one size first"
            )
        images[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        for _ in pool.map(put, range(len(paths))):
            pass  # draws the exceptions
    return images


def _decode(path: Path, mode: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode))
    except FileNotFoundError:
        raise UserError(f"image {path} not found") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"image {path} is damaged: {error}") from None
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _mode(path: Path) -> str:
    return "L" if _is_grey(path) else "RGB"


def _is_grey(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"image {path} is damaged: {error}") from None


def _subfolders(folder: Path, dataset: Dataset) -> list[str]:
    if not folder.is_dir():
        raise dataset.missing(folder)
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _image_files(folder: Path, deep: bool = False) -> list[Path]:
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
