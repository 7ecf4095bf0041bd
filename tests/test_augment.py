"""Shifts and mirrors, on literal tensors."""

import numpy as np
import pytest
import torch

from expressive_losses.data import Augmentation
from expressive_losses.data.augment import augmented, shifted

ROW = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)  # one 3x3 image
FIRST = torch.tensor([0])


def moved(down, right, mirror=None, mode="constant"):
    mirror = None if mirror is None else torch.tensor([mirror])
    return shifted(ROW, FIRST, torch.tensor([down]), torch.tensor([right]), mirror, mode)[0, 0].tolist()


def test_edge_padding_by_hand():
    assert moved(0, 0, mode="edge") == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert moved(1, 0, mode="edge") == [[4, 5, 6], [7, 8, 9], [7, 8, 9]]
    assert moved(-1, 2, mode="edge") == [[3, 3, 3], [3, 3, 3], [6, 6, 6]]


def test_constant_padding_by_hand():
    assert moved(1, 0) == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert moved(-1, 2) == [[0, 0, 0], [3, 0, 0], [6, 0, 0]]


def test_mirror_is_left_right_and_comes_with_the_shift():
    assert moved(0, 0, mirror=True) == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert moved(0, 0, mirror=False) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert moved(0, 1, mirror=True) == [
        [0, 3, 2],
        [0, 6, 5],
        [0, 9, 8],
    ]  # the mirror image of the shifted window


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_agrees_with_padding_then_slicing(mode):
    """The gather equals pad, slice, flip written as a loop, on colour images that are not square."""
    images = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([4, 0, 0, 2])
    down, right = torch.tensor([-2, 0, 1, 2]), torch.tensor([1, -2, 0, 2])
    mirror = torch.tensor([True, False, True, False])
    out = shifted(images, index, down, right, mirror, mode)
    for b in range(4):
        padded = np.pad(images[index[b]].numpy(), ((0, 0), (2, 2), (2, 2)), mode=mode)
        window = padded[:, 2 + down[b] : 6 + down[b], 2 + right[b] : 8 + right[b]]
        assert np.array_equal(out[b].numpy(), window[:, :, ::-1] if mirror[b] else window)


def test_random_windows_cover_all_offsets_evenly():
    """One bright pixel lands on each of the 5x5 offsets of padding 2, each about equally often."""
    images = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    images[0, 0, 2, 2] = 1
    generator = torch.Generator().manual_seed(0)
    out = augmented(images, torch.zeros(5000, dtype=torch.long), Augmentation(crop_padding=2), generator)
    share = out.float().mean(0)[0]
    assert torch.allclose(share, torch.full((5, 5), 0.04), atol=0.012)
    assert out.dtype == torch.uint8


def test_flip_alone_mirrors_half_of_the_images():
    out = augmented(ROW, torch.zeros(2000, dtype=torch.long), Augmentation(flip=True), torch.Generator().manual_seed(0))
    mirrored = (out == ROW.flip(3)).flatten(1).all(1)
    assert ((out == ROW).flatten(1).all(1) | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55
