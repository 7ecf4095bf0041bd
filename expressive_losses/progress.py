"""What a person sees while training."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class TrainingProgress:
    """A bar over all steps with eps, losses and accuracies, and one line per epoch.

    Args:
        steps: of the whole run; ``done`` of them are behind us.
        steps_per_epoch: for the epoch number.
        quiet: show nothing.
    """

    def __init__(self, steps: int, done: int, steps_per_epoch: int, quiet: bool = False, interval: float = 0.5) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._interval = interval
        self._next = time.monotonic() + interval
        self._quiet = quiet
        self._epochs = steps // steps_per_epoch
        self._bar = tqdm(
            total=steps, initial=done, unit="step", disable=quiet or not sys.stderr.isatty(), dynamic_ncols=True
        )

    def due(self) -> bool:
        """Return whether it is time to look: reading metrics off a GPU at every step would slow it down."""
        return time.monotonic() >= self._next

    def show(self, step: int, eps: float, means: Mapping[str, float]) -> None:
        """Move the bar."""
        self._next = time.monotonic() + self._interval
        shown = {"eps": f"{eps:.4f}", "loss": f"{means['total']:.3f}"}
        names = ("natural", "adversarial", "verified", "small_box")
        shown |= {name: f"{100 * means[name]:.1f}" for name in names if name in means}
        self._bar.set_description(f"epoch {(step - 1) // self._steps_per_epoch + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def epoch(self, step: int, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch."""
        self._bar.update(step - self._bar.n)
        if self._quiet:
            return
        line = f"epoch {row['epoch']:>3}/{self._epochs}  eps {row['eps']:.4f}  loss {row['train']['total']:.4f}"
        if "held_out" in row:
            figures = row["held_out"]
            line += f"  natural {100 * figures['natural']:.2f} %  IBP {100 * figures['ibp']:.2f} %"
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._bar.close()
