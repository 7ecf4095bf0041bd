"""Loss fusion: one bound on the summed exponentials of the margins, in place of one bound on every margin.

The cross-entropy of logits f is log(1 + sum_j exp(-m_j)) with the margins m_j = f_y - f_j. Bounding the sum as a whole
costs one backward pass however many classes there are; the exponentials are relaxed too, by lines above them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expressive_losses.types import Bounds, other_classes

#: Margins that lie closer together are taken for so far apart: the chord is then the wider interval's, still above.
_NARROWEST = 1e-4


class SummedExponentials:
    """sum_j exp(-m_j) bounded from above by a linear function of the margins m_j in [l_j, u_j], j != y.

    exp is convex, so its chord lies above it: exp(-m_j) <= exp(c) (t_j - s_j m_j) with slopes
    s_j = (exp(-l_j - c) - exp(-u_j - c)) / (u_j - l_j) and t_j = exp(-l_j - c) + s_j l_j. The bounds hold for every c;
    c = max_j -l_j keeps the numbers in range.

    Args:
        interval: bounds on the margins from below and above, (B, K-1).

    Source: Xu et al., "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond", section 3.3 and
        appendix; the intervals of the margins are those of IBP with elision, where its code takes differences of the
        logits' intervals.
    """

    def __init__(self, interval: Bounds) -> None:
        lower, width = interval.margins, (interval.upper - interval.margins).clamp(min=_NARROWEST)
        self._shift = -lower.detach().amin(1, keepdim=True)
        highest = torch.exp(-lower - self._shift)
        self._slopes = highest * -torch.expm1(-width) / width
        self._constant = (highest + self._slopes * lower).sum(1, keepdim=True)

    def row(self, labels: Tensor) -> Tensor:
        """Return the coefficients of sum_j s_j (f_y - f_j) over the logits, (B, 1, K)."""
        classes = self._slopes.shape[1] + 1
        row = self._slopes.new_zeros(len(labels), classes).scatter(1, other_classes(labels, classes), -self._slopes)
        return row.scatter(1, labels.unsqueeze(1), self._slopes.sum(1, keepdim=True)).unsqueeze(1)

    def margin(self, least: Tensor) -> Tensor:
        """Return a lower bound on -log sum_j exp(-m_j), (B, 1), which is at most the smallest margin.

        Args:
            least: a lower bound on sum_j s_j m_j, (B, 1).
        """
        summed = self._constant - least
        # positive but for rounding: terms are at most 1, and what is below their resolution is taken for that
        return -(summed.clamp(min=torch.finfo(summed.dtype).eps).log() + self._shift)
