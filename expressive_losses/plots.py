"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError

_ACCURACIES = {
    "natural": "natural",
    "adversarial": "under the training attack",
    "verified": "verified (training)",
    "small_box": "by bounds of a smaller box (no proof)",
}


def training_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss, radius and accuracies by epoch, from the rows of metrics.jsonl, into a PNG.

    Raises:
        UserError: when the picture cannot be written.
    """
    from matplotlib.figure import Figure  # here: it takes a second to import, and nothing else needs it

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["train"]["total"] for row in rows], color="black", label="total loss")
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")
    radius = losses.twinx()
    radius.fill_between(epochs, [row["eps"] for row in rows], alpha=0.15, color="tab:orange", label="eps")
    radius.set_ylabel("eps of training (pixel units)")
    for name, label in _ACCURACIES.items():
        points = [(row["epoch"], 100 * row["train"][name]) for row in rows if name in row["train"]]
        if points:
            accuracies.plot(*zip(*points, strict=True), label=f"train: {label}")
    for name, label, marker in (("natural", "natural", "o"), ("ibp", "IBP in float32", "s")):
        points = [(row["epoch"], 100 * row["held_out"][name]) for row in rows if "held_out" in row]
        if points:
            accuracies.plot(*zip(*points, strict=True), marker, label=f"held out: {label}")
    accuracies.set(xlabel="epoch", ylabel="%", ylim=(0, 100))
    accuracies.legend(fontsize=7, loc="lower right")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None
