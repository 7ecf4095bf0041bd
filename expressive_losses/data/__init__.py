"""Image data sets by name, held as uint8 and augmented in batches on the training device."""

from expressive_losses.data.augment import Augmentation
from expressive_losses.data.base import Dataset, ImageData, data_root
from expressive_losses.data.batches import Batches
from expressive_losses.data.split import split_validation

__all__ = ["Augmentation", "Batches", "Dataset", "ImageData", "data_root", "split_validation"]
