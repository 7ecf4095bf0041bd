"""Images and labels, batches of them, and the validation split."""

import numpy as np
import pytest
import torch
from images import image_data

from expressive_losses.data import Augmentation, Batches, ImageData, split_validation
from expressive_losses.errors import UserError

# ImageData


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), [0, 1], r"images must be uint8 \(0 to 255\), got float32"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), [0, 1], r"must have shape \(N, C, H, W\), got \(2, 3, 3\)"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0, 2], r"labels must be in 0..1, got 0..2"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [-1, 0], r"labels must be in 0..1, got -1..0"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0, 1, 0], "2 images but 3 labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0.0, 1.0], "labels must be N integers, got float32"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [[0], [1]], r"got int64 of shape \(2, 1\)"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), "there is no image"),
    ],
)
def test_unusable_data_is_refused(images, labels, message):
    with pytest.raises(UserError, match="mine: .*" + message):
        ImageData.checked(images, labels, classes=2, source="mine")


def test_pixels_above_the_scale_are_refused():
    with pytest.raises(UserError, match="pixels go up to 17, above the scale 16"):
        ImageData.checked(np.full((1, 1, 2, 2), 17, np.uint8), [0], 2, scale=16)


def test_numpy_arrays_of_any_integer_labels_are_taken():
    data = ImageData.checked(np.zeros((2, 1, 3, 3), np.uint8), np.array([0, 1], np.uint8), 2)
    assert data.labels.dtype == torch.int64
    assert (data.shape, len(data), len(data[:1])) == ((1, 3, 3), 2, 1)


# Batches


def test_epoch_order_is_a_function_of_seed_and_epoch():
    first, again = (Batches(image_data(100)).epoch_order(1, 2) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first.sort().values, torch.arange(100))
    others = [Batches(image_data(100)).epoch_order(*pair) for pair in ((1, 3), (2, 2), (0, 0), (2, 1))]
    assert not any(torch.equal(first, other) for other in others)


def test_epoch_order_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    Batches(image_data()).epoch_order(0, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_batch_is_float_in_the_unit_interval():
    data = image_data()
    x, y = Batches(data).batch(torch.tensor([3, 1]))
    assert x.dtype == torch.float32
    assert torch.equal(x, data.images[[3, 1]].float() / 255)
    assert torch.equal(y, data.labels[[3, 1]])
    assert torch.equal(x * 255, data.images[[3, 1]].float())


def test_augmented_batch_is_a_function_of_the_generator():
    batches = Batches(image_data(size=8), Augmentation(True, 2, "edge"))
    index = torch.arange(10)
    one, two, other = (batches.batch(index, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(batches.batch(index, augment=False)[0], Batches(batches.data).batch(index)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_need_no_synchronisation():
    batches = Batches(image_data(64, size=8), Augmentation(True, 2, "constant"), "cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    order = batches.epoch_order(0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x, _ = batches.batch(batches.order_of_step(order, 0, 16), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.is_cuda and torch.equal(order.cpu(), Batches(image_data(64, size=8)).epoch_order(0, 0))


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (9, 4, False, [4, 4]),  # the last batch would hold one image
        (8, 4, False, [4, 4]),
        (3, 1, False, [1, 1, 1]),
        (3, 8, False, [3]),
    ],
)
def test_batches_of_an_epoch(count, batch_size, drop_last, sizes):
    batches = Batches(image_data(count))
    order = batches.epoch_order(0, 0)
    steps = batches.steps_per_epoch(batch_size, drop_last)
    parts = [batches.order_of_step(order, step, batch_size) for step in range(steps)]
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), order[: sum(sizes)])


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match="3 training images do not fill one batch of 4; lower the batch size"):
        Batches(image_data(3)).steps_per_epoch(4, drop_last=True)


def test_in_order_gives_every_image_once():
    data = image_data(9)
    found = list(Batches(data, Augmentation(True, 1)).in_order(4))
    assert [len(y) for _, y in found] == [4, 4, 1]
    assert torch.equal(torch.cat([x for x, _ in found]), data.images.float() / 255)


# The validation split


def test_split_is_stratified_disjoint_and_deterministic():
    """100 images in classes of 50, 30 and 20: a fifth of each is held out."""
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)  # an image tells which one it is
    data = ImageData.checked(images, labels, 3)
    train, validation = split_validation(data, 0.2, seed=1)
    assert torch.bincount(validation.labels).tolist() == [10, 6, 4]
    seen = torch.cat([train.images, validation.images]).flatten()
    assert sorted(seen.tolist()) == list(range(100))
    assert torch.equal(split_validation(data, 20, seed=1)[1].images, validation.images)
    assert not torch.equal(split_validation(data, 20, seed=2)[1].images, validation.images)


def test_split_gives_the_exact_number():
    assert [len(part) for part in split_validation(image_data(10, classes=3), 4)] == [6, 4]


@pytest.mark.parametrize("held_out", [0, 10, 11, -1, 0.0, 1.0, 1.5])
def test_split_that_leaves_nothing(held_out):
    with pytest.raises(UserError, match="expected a fraction"):
        split_validation(image_data(10), held_out)
