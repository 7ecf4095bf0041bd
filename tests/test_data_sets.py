"""Data sets: what all of them do, and each on small files of the real formats."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expressive_losses.data import Augmentation, Dataset, ImageData, data_root
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS

# Data sets: the registry


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_explains_itself(name):
    dataset = DATASETS.build(name)
    assert DATASETS.help(name).endswith(".")
    assert dataset.source
    assert DATASETS.build(dataset.spec()) == dataset
    if dataset.shape:
        assert len(dataset.mean) == len(dataset.std) == dataset.shape[0]


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if name != "digits"])
def test_missing_files_say_where_they_belong(name, tmp_path):
    dataset = DATASETS.build(name)
    with pytest.raises(UserError, match=f"data set '{name}': .*{tmp_path}") as caught:
        dataset.load(tmp_path, "train")
    assert dataset.source in str(caught.value) and "\n" not in str(caught.value)
    if "download" in type(dataset).model_fields:
        assert "--set data.download=true" in str(caught.value)


def test_split_names():
    with pytest.raises(UserError, match="the split is 'train' or 'test', got 'val'"):
        DATASETS.build("digits").load(None, "val")


def test_root_is_argument_then_variable_then_data(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPRESSIVE_LOSSES_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert str(data_root("here")) == "here"
    monkeypatch.delenv("EXPRESSIVE_LOSSES_DATA")
    assert str(data_root()) == "data"


def test_augmentation_of_the_papers():
    assert DATASETS.build("cifar10").augmentation == Augmentation(True, 2, "edge")
    assert DATASETS.build("tinyimagenet").augmentation == Augmentation(True, 4, "edge")
    assert not DATASETS.build("mnist").augmentation
    assert DATASETS.build({"name": "cifar10", "flip": False, "crop_padding": 0}).augmentation == Augmentation(
        False, 0, "edge"
    )


# Data sets: digits and the MNIST format


def test_digits_split():
    train, test = (DATASETS.build("digits").load(None, split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape, train.scale) == (1437, 360, (1, 8, 8), 16.0)
    assert int(train.images.max()) == 16
    assert torch.bincount(test.labels).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert test.labels[:8].tolist() == [3, 7, 3, 9, 0, 8, 7, 0]
    assert int(test.images.long().sum()) == 111717


def write_idx(path, array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def small_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    write_idx(raw / "t10k-images-idx3-ubyte.gz", images)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.array([7, 2]))
    return tmp_path


def test_mnist_reads_plain_and_gzipped_files_and_writes_none(small_mnist):
    before = sorted(small_mnist.rglob("*"))
    data = DATASETS.build("mnist").load(small_mnist, "test")
    assert data.labels.tolist() == [7, 2]
    assert data.images[0, 0, 1, :3].tolist() == [28, 29, 30]
    assert sorted(small_mnist.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:200], "is damaged: .*; delete it and fetch it again"),
        (lambda content: b"<html>", "is damaged: .*gzip"),
        (lambda content: gzip.compress(b"<html>"), "does not start like an IDX file"),
        (lambda content: gzip.compress(gzip.decompress(content)[:10]), "its header is cut off"),
        (
            lambda content: gzip.compress(gzip.decompress(content)[:-1]),
            "holds 1567 bytes .*, its header says 1568",
        ),
    ],
)
def test_damaged_mnist_file(small_mnist, damage, message):
    path = small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path.name} .*{message}|{path.name} {message}"):
        DATASETS.build("mnist").load(small_mnist, "test")


def test_real_mnist(data_root):
    train, test = (DATASETS.build("mnist").load(data_root, split) for split in ("train", "test"))
    assert (len(train), len(test), test.shape) == (60000, 10000, (1, 28, 28))
    assert test.labels[:3].tolist() == [7, 2, 1]
    assert abs(float(train.images.float().mean()) / 255 - 0.1307) < 1e-4


# Data sets: files of a user's own


def test_tensors(tmp_path):
    grey = np.zeros((4, 5, 6), np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=grey, y_train=[0, 1, 2, 0], x_test=grey[:2], y_test=[3, 0])
    dataset = DATASETS.build({"name": "tensors", "path": "mine.npz"})
    train, test = dataset.load(tmp_path, "train"), dataset.load(tmp_path, "test")
    assert (train.shape, train.classes, test.classes, len(test)) == ((1, 5, 6), 4, 4, 2)
    few = DATASETS.build({"name": "tensors", "path": str(tmp_path / "mine.npz"), "num_classes": 3})
    with pytest.raises(UserError, match=r"mine.npz \(test\): labels must be in 0..2, got 0..3"):
        few.load("elsewhere", "test")


def test_channels_last_are_not_taken_for_rows(tmp_path):
    images, labels = np.zeros((2, 28, 28, 3), np.uint8), [0, 1]
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UserError, match=r"\(2, 28, 28, 3\) look like \(N, H, W, C\); expected \(N, C, H, W\)"):
        DATASETS.build({"name": "tensors", "path": "mine.npz"}).load(tmp_path, "train")


def test_the_example_of_the_documentation_is_found(tmp_path, monkeypatch):
    """Arrays where docs/data.md writes them are those that its command reads; the data root is the default one."""
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    written = re.search(r'np.savez\("(\S+?)"', text).group(1)
    given = re.search(r"data.path=(\S+) ", text).group(1)
    monkeypatch.delenv("EXPRESSIVE_LOSSES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    x, y = np.zeros((4, 5, 6), np.uint8), [0, 1, 2, 0]
    np.savez(written, x_train=x, y_train=y, x_test=x, y_test=y)
    assert len(DATASETS.build({"name": "tensors", "path": given}).load(data_root(), "train")) == 4


def test_damaged_or_unsafe_npz(tmp_path):
    dataset = DATASETS.build({"name": "tensors", "path": "mine.npz"})
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(UserError, match="array 'y_train' is missing; it holds x_train"):
        dataset.load(tmp_path, "train")
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "mine.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    with pytest.raises(UserError, match="cannot be read as an .npz file of numbers .*Python objects"):
        dataset.load(tmp_path, "train")
    (tmp_path / "mine.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as an .npz file of numbers"):
        dataset.load(tmp_path, "train")


def write_image(path, value, size=(4, 3), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_imagefolder(tmp_path):
    write_image(tmp_path / "train/cat/1.png", (1, 2, 3))
    write_image(tmp_path / "train/dog/1.png", (4, 5, 6))
    write_image(tmp_path / "test/dog/1.PNG", (7, 8, 9))
    (tmp_path / "test/dog/notes.txt").write_text("not an image")
    dataset = DATASETS.build("imagefolder")
    train, test = dataset.load(tmp_path, "train"), dataset.load(tmp_path, "test")
    assert (train.shape, train.classes, train.labels.tolist(), test.labels.tolist()) == (
        (3, 3, 4),
        2,
        [0, 1],
        [1],
    )
    assert test.images[0, :, 2, 3].tolist() == [7, 8, 9]


def test_imagefolder_grey(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / "mine" / split / "a" / "1.png", 9, mode="L")
    data = DATASETS.build({"name": "imagefolder", "path": "mine"}).load(tmp_path, "test")
    assert (data.shape, int(data.images.min())) == ((1, 3, 4), 9)


def test_imagefolder_errors(tmp_path):
    dataset = DATASETS.build("imagefolder")
    write_image(tmp_path / "train/cat/1.png", (1, 2, 3))
    write_image(tmp_path / "train/cat/2.png", (1, 2, 3), size=(5, 3))
    with pytest.raises(UserError, match="2.png is 5x3 pixels but 1.png is 4x3; resize the images to one size"):
        dataset.load(tmp_path, "train")
    (tmp_path / "train/cat/2.png").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="2.png is damaged"):
        dataset.load(tmp_path, "train")
    write_image(tmp_path / "test/cow/1.png", (1, 2, 3))
    with pytest.raises(UserError, match=r"class 'cow' of .*test has no folder in train/"):
        dataset.load(tmp_path, "test")


@pytest.mark.parametrize("rearranged", [False, True])
def test_tinyimagenet(tmp_path, rearranged):
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        write_image(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", (0, 0, 0), size=(64, 64))
    if rearranged:
        write_image(folder / "val" / "n02" / "images" / "val_0.JPEG", (9, 9, 9), size=(64, 64))
    else:
        write_image(folder / "val" / "images" / "val_0.JPEG", 9, size=(64, 64), mode="L")  # some of its files are grey
        (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t32\t44\t62\n")
    dataset = DATASETS.build("tinyimagenet")
    train, test = dataset.load(tmp_path, "train"), dataset.load(tmp_path, "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert (test.shape, test.classes, int(test.images.float().mean())) == ((3, 64, 64), 200, 9)


def test_imagenet64(tmp_path):
    folder = tmp_path / "imagenet64"
    folder.mkdir()
    for number in range(1, 11):
        row = np.full((1, 3 * 64 * 64), number, np.uint8)
        np.savez(folder / f"train_data_batch_{number}.npz", data=row, labels=np.array([number * 100]))
    data = DATASETS.build("imagenet64").load(tmp_path, "train")
    assert data.labels.tolist() == [number * 100 - 1 for number in range(1, 11)]
    assert data.images[:, 0, 0, 0].tolist() == list(range(1, 11))
    with pytest.raises(UserError, match="val_data.npz not found; .*the pickled files will not do"):
        DATASETS.build("imagenet64").load(tmp_path, "test")


class Mine(Dataset):
    """A data set defined outside of the package."""

    shape = (1, 2, 2)
    classes = 3
    source = "nothing is needed"

    def read(self, root, split):
        return ImageData.checked(np.zeros((3, 1, 2, 2), np.uint8), [0, 1, 2], self.classes)


def test_a_data_set_of_the_users_own():
    dataset = DATASETS.build({"name": f"{__name__}:Mine", "flip": True})
    assert (len(dataset.load(None, "train")), dataset.augmentation) == (3, Augmentation(flip=True))
    assert DATASETS.build(dataset.spec()) == dataset


# Data sets that torchvision reads


def test_svhn_of_the_real_format(tmp_path, monkeypatch):
    """The .mat file holds (H, W, C, N) images and label 10 for the digit 0; only its checksum is waived."""
    scipy_io = pytest.importorskip("scipy.io")
    from expressive_losses.data.torchvision_compat import load_torchvision

    load_torchvision()
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    (tmp_path / "svhn").mkdir()
    images = np.zeros((32, 32, 3, 2), np.uint8)
    images[5, 6, 2, 1] = 77
    scipy_io.savemat(tmp_path / "svhn" / "test_32x32.mat", {"X": images, "y": np.array([[10], [3]])})
    data = DATASETS.build("svhn").load(tmp_path, "test")
    assert data.labels.tolist() == [0, 3]
    assert (data.shape, int(data.images[1, 2, 5, 6])) == ((3, 32, 32), 77)


def test_damaged_cifar_is_not_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="data set 'cifar10': not found or damaged under .*cifar-10-python.tar.gz"):
        DATASETS.build("cifar10").load(tmp_path, "test")


def test_cifar_layout(tmp_path, monkeypatch):
    """Pickled rows of 3072 bytes, channel by channel; only the checksum is waived here."""
    import pickle

    from expressive_losses.data.torchvision_compat import load_torchvision

    load_torchvision()
    from torchvision.datasets import CIFAR10, cifar

    row = np.arange(3072) % 256
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": row[None].astype(np.uint8), "labels": [4]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(cifar, "check_integrity", lambda *arguments: True)
    data = DATASETS.build("cifar10").load(tmp_path, "test")
    assert data.labels.tolist() == [4]
    assert data.images[0].flatten().tolist() == row.tolist()
