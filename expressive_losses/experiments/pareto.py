"""Two objectives, both to be large: which points are not beaten, and how much they cover."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other beats, by the first objective, ascending.

    A point is beaten when another is at least as good in both and better in one; of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index))
    front, best = [], float("-inf")
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def hypervolume(points: Sequence[Point], reference: Point = (0.0, 0.0)) -> float:
    """Return the area of what the points dominate above ``reference``: the larger, the better the trade-off."""
    above = [point for point in points if point[0] > reference[0] and point[1] > reference[1]]
    area, left = 0.0, reference[0]
    for index in pareto_front(above):
        x, y = above[index]
        area += (x - left) * (y - reference[1])
        left = x
    return area
