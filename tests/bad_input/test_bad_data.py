"""train.py: data sets."""

from __future__ import annotations

import pytest

from expressive_losses.cli import train_main

CASES = [
    ("--dataset tensors", "data.path"),
    *(
        (f"--dataset tensors --data-dir data --set data.path={name}.npz", message)
        for name, message in {
            "nowhere": "nowhere.npz",
            "no_test": "x_test",
            "float": "uint8",
            "nan": "uint8",
            "flat": "(N, C, H, W)",
            "five": "(N, C, H, W)",
            "short": "30 labels",
            "negative": "labels must be in",
            "float_labels": "integers",
            "one_hot": "integers",
            "empty_train": "no image",
            "empty_test": "no image",
            "one_image": "training images",
            "objects": "objects.npz",
            "other_test": "(1, 6, 8)",
            "one_class": "classes",
            "text": "text.npz",
            "cut": "cut.npz",
        }.items()
    ),
    ("--dataset tensors --data-dir data --set data.path=good.npz --set data.num_classes=5", "labels must be in 0..4"),
    ("--dataset tensors --data-dir data --set data.path=good.npz --set data.scale=3", "scale"),
    ("--dataset tensors --data-dir data --set data.path=colour.npz --set data.mean=[0.1,0.2]", "mean"),
    ("--dataset imagefolder --data-dir data --set data.path=nowhere", "nowhere"),
    ("--dataset imagefolder --data-dir data --set data.path=sizes", "9x9"),
    ("--dataset imagefolder --data-dir data --set data.path=damaged", "damaged"),
    ("--dataset imagefolder --data-dir data --set data.path=unknown_class", "class2"),
    ("--dataset imagefolder --data-dir data --set data.path=no_images", "*.png"),
    ("--dataset mnist --data-dir data/mnist_cut", "damaged"),
    ("--dataset mnist --data-dir data/mnist_huge", "damaged"),
    ("--dataset nets:number", "nets:number"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_data(refuses_run, line, message):
    refuses_run(train_main, line, message)
