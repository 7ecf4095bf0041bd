"""The pictures of a report, drawn with matplotlib into PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

#: One colour for each status; they differ in lightness too.
COLORS = {"verified": "#1b7f5c", "unknown": "#c8ccd4", "falsified": "#e07a3f", "misclassified": "#4f5d95"}
METHOD_COLORS = {"ibp": "#e07a3f", "crown": "#1b7f5c"}
INK = "#1f2430"


def new_figure(width: float = 8.0, height: float = 3.0) -> Any:
    """Return an empty figure, in inches; pyplot and its state are left alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Any) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def stacked(names: Sequence[str], counts: Mapping[str, Sequence[float]], xlabel: str) -> bytes:
    """Draw one horizontal bar for each name, of the counts of each status side by side."""
    figure = new_figure(height=0.8 + 0.32 * len(names))
    axes = _plain(figure.subplots())
    left = np.zeros(len(names))
    for status, values in counts.items():
        if any(values):
            axes.barh(names, values, left=left, color=COLORS[status], label=status, height=0.68)
        left += np.asarray(values, dtype=float)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    axes.margins(x=0.01)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return png_of(figure)


def curve(x: Sequence[float], y: Sequence[float], low: Sequence[float], high: Sequence[float], mark: float) -> bytes:
    """Draw certified accuracy (percent) against the radius with its interval, and a line at ``mark``."""
    figure = new_figure()
    axes = _plain(figure.subplots())
    axes.fill_between(x, low, high, color=COLORS["verified"], alpha=0.18, linewidth=0, label="95 % interval")
    axes.plot(x, y, color=COLORS["verified"], linewidth=2, label="certified")
    if min(x) <= mark <= max(x):
        axes.axvline(mark, color=INK, linewidth=1, linestyle=":", label=f"eps {mark:g}")
    axes.set(xlabel="radius (pixel units)", ylabel="% of images", ylim=(0, 100), xlim=(min(x), max(x)))
    axes.legend(frameon=False, fontsize=9)
    return png_of(figure)


def by_layer(layers: Sequence[str], values: Mapping[str, Sequence[float]], ylabel: str) -> bytes:
    """Draw, for each layer, one bar for each bound method; on a logarithmic scale where a linear one shows little."""
    figure = new_figure(height=2.8)
    axes = _plain(figure.subplots())
    width = 0.8 / len(values)
    for at, (method, numbers) in enumerate(values.items()):
        places = np.arange(len(layers)) + (at - (len(values) - 1) / 2) * width
        axes.bar(places, numbers, width=width * 0.92, color=METHOD_COLORS.get(method, INK), label=method)
    axes.set_xticks(np.arange(len(layers)), layers)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(ylabel)
    positive = [number for numbers in values.values() for number in numbers if number > 0]
    if positive and max(positive) > 100 * min(positive):
        axes.set_yscale("log")
    axes.margins(x=0.02)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return png_of(figure)


def counterexamples(triples: Sequence[tuple[ndarray, ndarray, str]], eps: float) -> bytes:
    """Draw columns of image, counterexample and their difference; each (C, H, W) in pixel units, with a title."""
    figure = new_figure(width=1.35 * max(len(triples), 4) + 0.6, height=4.4)
    grid = figure.subplots(3, len(triples), squeeze=False)
    for column, (image, found, title) in enumerate(triples):
        for row, picture in enumerate((image, found, 0.5 + (found - image) / (2 * max(eps, 1e-12)))):
            axes = grid[row, column]
            axes.imshow(_pixels(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color("#d0d5dd")
        grid[0, column].set_title(title, fontsize=9, color=INK)
    for row, name in enumerate(("image", "counterexample", f"difference\n(±{eps:.3g})")):
        grid[row, 0].set_ylabel(name, fontsize=9, color=INK)
    return png_of(figure)


def _pixels(image: ndarray) -> ndarray:
    """Return what imshow takes: (H, W) or (H, W, 3); an input that is no image becomes one row of pixels."""
    image = np.clip(image, 0, 1)
    if image.ndim != 3:
        return image.reshape(1, -1)
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image.mean(0)


def _plain(axes: Any) -> Any:
    """Return the axes without the frame that nobody reads."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#98a2b3")
    axes.tick_params(colors="#475467", labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="both", color="#eef0f3")
    return axes
