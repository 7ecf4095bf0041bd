"""MNIST and the sets that copy its format."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from expressive_losses.data.base import Dataset, ImageData, Split
from expressive_losses.data.download import DOWNLOAD_HINT, torchvision_dataset
from expressive_losses.data.idx import read_idx
from expressive_losses.registry import DATASETS

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class MnistFormat(Dataset):
    """Base: 60000 and 10000 grey images of 28x28 pixels in four IDX files, gzipped or not.

    They are looked for in ``<folder>/raw``, then in ``<folder>``, and read as they are: nothing is unpacked,
    so a read-only folder will do. No normalisation and no augmentation, as in the papers.

    Args:
        download: fetch missing files with torchvision.
    """

    shape = (1, 28, 28)
    classes = 10
    folder: ClassVar[str]

    download: bool = False

    def read(self, root: Path, split: Split) -> ImageData:
        """Read one split from the IDX files."""
        names = _FILES[split]
        if self.download and not all(self._find(root, name) for name in names):
            torchvision_dataset(self, self.folder, root, train=split == "train", download=True)
        images, labels = (read_idx(self._existing(root, name)) for name in names)
        return ImageData.checked(images[:, None], labels, self.classes, source=f"data set '{self.name}' ({split})")

    def _find(self, root: Path, name: str) -> Path | None:
        folders = (root / self.folder / "raw", root / self.folder)
        candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz"))
        return next((path for path in candidates if path.is_file()), None)

    def _existing(self, root: Path, name: str) -> Path:
        found = self._find(root, name)
        if found is None:
            raise self.missing(root / self.folder / "raw" / f"{name}.gz", DOWNLOAD_HINT)
        return found


@DATASETS.register("mnist")
class Mnist(MnistFormat):
    """MNIST: handwritten digits, 28x28 grey."""

    folder = "MNIST"
    source = "put the four *-ubyte.gz files of MNIST into <data root>/MNIST/raw"


@DATASETS.register("fashion_mnist")
class FashionMnist(MnistFormat):
    """Fashion-MNIST: articles of clothing, 28x28 grey."""

    folder = "FashionMNIST"
    source = "put the four *-ubyte.gz files of Fashion-MNIST into <data root>/FashionMNIST/raw"


@DATASETS.register("kmnist")
class Kmnist(MnistFormat):
    """Kuzushiji-MNIST: cursive Japanese characters, 28x28 grey."""

    folder = "KMNIST"
    source = "put the four *-ubyte.gz files of Kuzushiji-MNIST into <data root>/KMNIST/raw"
