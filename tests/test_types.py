"""Boxes: clipping, membership, and SABR's small box, which never leaves the region (property tests)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expressive_losses.types import Box, other_classes, specification

unit = st.floats(0, 1, allow_nan=False, width=32)


@given(unit, st.floats(0, 1, width=32))
def test_around_is_the_clipped_ball(x, eps):
    box = Box.around(torch.tensor([[x]]), eps)
    assert 0 <= box.lower <= x <= box.upper <= 1
    assert box.upper - box.lower <= 2 * eps + 1e-6


@settings(max_examples=300)
@given(unit, st.floats(0, 0.5, width=32), st.floats(0, 1), st.floats(0, 1))
def test_small_box_is_inside_and_holds_the_adversarial_point_when_it_fits(x, eps, ratio, where):
    box = Box.around(torch.tensor([[x]]), eps)
    adversarial = box.lower + where * (box.upper - box.lower)
    small = box.shrink(ratio, adversarial, eps)
    assert box.contains(small.lower).all()
    assert box.contains(small.upper).all()
    assert (small.lower <= small.upper).all()
    assert (small.upper - small.lower <= 2 * ratio * eps + 1e-6).all()
    assert small.contains(adversarial, atol=1e-6).all()


def test_small_box_limits():
    box = Box.around(torch.rand(4, 3), 0.2)
    adversarial = box.sample()
    point = box.shrink(0.0, adversarial, 0.2)
    torch.testing.assert_close(point.lower, adversarial)
    torch.testing.assert_close(point.upper, adversarial)
    whole = box.shrink(1.0, adversarial, 0.2)
    torch.testing.assert_close(whole.lower, box.lower)
    torch.testing.assert_close(whole.upper, box.upper)


def test_small_box_grows_with_the_ratio():
    box = Box.around(torch.rand(16, 3), 0.2)
    adversarial = box.sample()
    sizes = [box.shrink(r / 10, adversarial, 0.2) for r in range(11)]
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        assert larger.contains(smaller.lower, atol=1e-6).all()
        assert larger.contains(smaller.upper, atol=1e-6).all()


def test_contains_is_per_sample_and_closed():
    box = Box(torch.zeros(2, 2), torch.ones(2, 2))
    inside = torch.tensor([[0.0, 1.0], [0.5, 1.0000001]])
    assert box.contains(inside).tolist() == [True, False]
    assert box.contains(inside, atol=1e-3).tolist() == [True, True]


def test_specification_rows():
    """Label 1 of 3: rows f_1 - f_0 and f_1 - f_2."""
    expected = torch.tensor([[[-1.0, 1.0, 0.0], [0.0, 1.0, -1.0]]])
    assert torch.equal(specification(torch.tensor([1]), 3), expected)
    assert other_classes(torch.tensor([0, 1, 2]), 3).tolist() == [[1, 2], [0, 2], [0, 1]]
