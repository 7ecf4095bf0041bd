"""Random images for the tests of data."""

import torch

from expressive_losses.data import ImageData


def image_data(count=10, classes=2, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    return ImageData.checked(images, torch.arange(count) % classes, classes)
