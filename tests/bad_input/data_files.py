"""Data sets that are wrong, on the disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def arrays(**changes):
    """The arrays of a small data set of one's own, some of them replaced."""
    random = np.random.default_rng(0)
    good = {
        "x_train": random.integers(0, 255, (40, 1, 8, 8)).astype(np.uint8),
        "y_train": np.arange(40) % 10,
        "x_test": random.integers(0, 255, (20, 1, 8, 8)).astype(np.uint8),
        "y_test": np.arange(20) % 10,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def data_files(folder: Path) -> None:
    good = arrays()
    nan = good["x_train"].astype(np.float32)
    nan[0] = np.nan
    files = {
        "good": good,
        "no_test": arrays(x_test=None),
        "float": arrays(x_train=good["x_train"] / 255),
        "nan": arrays(x_train=nan),
        "flat": arrays(x_train=good["x_train"].reshape(40, 64)),
        "five": arrays(x_train=good["x_train"][:, None]),
        "short": arrays(y_train=good["y_train"][:30]),
        "negative": arrays(y_train=good["y_train"] - 1),
        "float_labels": arrays(y_train=good["y_train"] / 1.0),
        "one_hot": arrays(y_train=np.eye(10, dtype=int)[good["y_train"]]),
        "empty_train": arrays(x_train=good["x_train"][:0], y_train=good["y_train"][:0]),
        "empty_test": arrays(x_test=good["x_test"][:0], y_test=good["y_test"][:0]),
        "one_image": arrays(x_train=good["x_train"][:1], y_train=good["y_train"][:1]),
        "objects": arrays(x_train=np.array([print], dtype=object)),
        "other_test": arrays(x_test=good["x_test"][:, :, :6]),
        "one_class": arrays(y_train=good["y_train"] * 0, y_test=good["y_test"] * 0),
        "colour": arrays(x_train=good["x_train"].repeat(3, 1), x_test=good["x_test"].repeat(3, 1)),
    }
    for name, content in files.items():
        np.savez(folder / f"{name}.npz", **content)
    (folder / "text.npz").write_text("not an archive")
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    image_folders(folder)
    idx_files(folder)


def image_folders(folder: Path) -> None:
    for name in ("sizes", "damaged", "unknown_class", "no_images"):
        for split in ("train", "test"):
            for number in range(2):
                (folder / name / split / f"class{number}").mkdir(parents=True)
                if name != "no_images":
                    picture = Image.fromarray(np.full((8, 8), 100 * number, np.uint8))
                    picture.save(folder / name / split / f"class{number}" / "a.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "sizes" / "train" / "class1" / "b.png")
    (folder / "damaged" / "train" / "class1" / "b.png").write_bytes(b"\x89PNG rubbish")
    (folder / "unknown_class" / "test" / "class2").mkdir()


def idx_files(folder: Path) -> None:
    """MNIST files whose labels are cut short, and one whose header promises more than memory holds."""
    for name, count in (("mnist_cut", 4), ("mnist_huge", 2**31)):
        raw = folder / name / "MNIST" / "raw"
        raw.mkdir(parents=True)
        header = b"\0\0\x08\x03" + struct.pack(">III", count, 28, 28)
        (raw / "train-images-idx3-ubyte").write_bytes(header + bytes(3 * 784))
        (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes(4))
