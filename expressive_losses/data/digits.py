"""The 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expressive_losses.data.base import Dataset, ImageData, Split
from expressive_losses.data.split import split_validation
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS

TEST_IMAGES = 360


@DATASETS.register("digits")
class Digits(Dataset):
    """1797 handwritten digits of 8x8 pixels, bundled with scikit-learn: real data, no download.

    The set has no official split: 360 test images are picked once and for all, class by class, by
    :func:`split_validation` with seed 0; 1437 are for training. Pixels are 0..16.
    """

    shape = (1, 8, 8)
    classes = 10
    # chosen on a validation split of 287 training images (results/digits/README.md)
    defaults = {
        "model": "cnn_tiny",
        "eps": {
            "target": "0.1",
            "train_multiplier": 1.15,
            "schedule": {"name": "smoothed", "length": 1 / 6, "unit": "run"},
        },
        "optimizer": {"name": "adam", "lr": 5e-3},
        "lr_schedule": {"name": "multistep", "milestones": [0.67, 0.83], "gamma": 0.2, "unit": "run"},
        "training": {"epochs": 60, "batch_size": 64, "evaluate_every": 5},
    }
    source = "it comes with scikit-learn: pip install scikit-learn"

    def read(self, root: Path, split: Split) -> ImageData:
        """Return one split; ``root`` is not used."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                f"data set '{self.name}': scikit-learn is not installed; pip install scikit-learn"
            ) from None
        digits = load_digits()
        images = digits.images.astype(np.uint8)[:, None]
        whole = ImageData.checked(images, digits.target, self.classes, scale=16.0, source=self.name)
        train, test = split_validation(whole, TEST_IMAGES, seed=0)
        return train if split == "train" else test
