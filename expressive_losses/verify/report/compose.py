"""From a ledger to the sections of a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.types import margins_of
from expressive_losses.verify.base import Status
from expressive_losses.verify.evaluation import pixels
from expressive_losses.verify.ledger import Row, load_witness
from expressive_losses.verify.radius import RadiusRow, summarize_radii
from expressive_losses.verify.report import figures
from expressive_losses.verify.report.document import Card, Document, Picture, Section, Table
from expressive_losses.verify.report.layers import LayerBounds, bounds_by_layer
from expressive_losses.verify.shard import asked_indices
from expressive_losses.verify.summary import attacks_of, summarize, wilson

ORDER = ("verified", "unknown", "falsified", "misclassified")
SHOWN = 8  # counterexamples


def compose(
    folder: Path,
    head: Mapping[str, Any],
    rows: Mapping[int, Row],
    radii: tuple[Mapping[str, Any], Mapping[int, RadiusRow]] | None,
    network: BoundedNetwork | None,
    images: Tensor | None,
    labels: Tensor | None,
    sample: int,
) -> Document:
    """Return the report.

    Args:
        folder: of the ledger, for the counterexamples.
        head, rows: of the ledger.
        radii: head and rows of the radii, if there are any.
        network: in eval mode, float32, on the CPU; ``None`` leaves out what needs it.
        images, labels: the data set, likewise.
        sample: images whose hidden layers are bounded.
    """
    summary = summarize(head, rows.values(), attacks_of(head))
    every = None if labels is None else labels[list(asked_indices(head))].tolist()
    sections = [_who_decided(summary), _by_class(list(rows.values()), every)]
    if radii is not None:
        sections.append(_by_radius(radii, head["eps_value"]))
    if network is not None:
        sections.append(_layers(network, images, labels, rows, head["eps_value"], sample))
    if images is not None:
        sections.append(_counterexamples(folder, rows, images, network, head["eps_value"]))
    sections += [_close_calls(rows), _settings(head)]
    title = f"Verification of {head['dataset'] or 'a data set'} at eps {head['eps']}"
    where = f"{head['split']} images" if head["split"] else "images"
    subtitle = (
        f"{summary['images']} {where}, l-infinity balls in pixel units; {summary['seconds']:.1f} s of computation"
    )
    if summary["not_reached"]:
        subtitle += f"; {summary['not_reached']} images were not reached and count as wrong"
    return Document(title, subtitle, _cards(summary), [section for section in sections if section is not None])


def _cards(summary: Mapping[str, Any]) -> list[Card]:
    notes = {
        "natural": ("Natural accuracy", "misclassified"),
        "adversarial": ("Accuracy under attack", "falsified"),
        "verified": ("Verified accuracy", "verified"),
    }
    cards = []
    for key, (title, status) in notes.items():
        figure = summary[key]
        if figure is not None:
            interval = f"95 % interval {figure['low']:.2f} to {figure['high']:.2f}"
            note = f"{interval}; {figure['count']} of {summary['images']}"
            value = f"{figure['percent']:.2f} %"
            color = figures.COLORS[status]
            cards.append(Card(title, value, note, color, figure["percent"], figure["low"], figure["high"]))
    return cards


def _who_decided(summary: Mapping[str, Any]) -> Section:
    stages = {name: dict(counts) for name, counts in summary["decided_by"].items()}
    seconds = {name: counts.pop("seconds") for name, counts in stages.items()}
    shown = {name: counts for name, counts in stages.items() if sum(counts.values())}
    rows = []
    for name, counts in stages.items():
        total = sum(counts.values())
        each = f"{seconds[name] / total:.3f}" if total else ""
        cells = [str(counts.get(status, 0) or "") for status in ORDER]
        rows.append((name, *cells, str(total), f"{seconds[name]:.1f}", each))
    header = ("stage", *ORDER, "images", "seconds", "s / image")
    text = (
        "The stages run in this order, each on what those before it left undecided. The seconds of an image are those "
        "of all stages that it went through."
    )
    counts = {status: [shown[name].get(status, 0) for name in shown] for status in ORDER}
    caption = "Images that each stage decided, by status."
    pictures = [Picture("stages", caption, figures.stacked(list(shown), counts, "images"))] if shown else []
    return Section("Who decided what", text, pictures, [Table(header, rows)])


def _by_class(rows: Sequence[Row], every: Sequence[int] | None) -> Section | None:
    """Return accuracies by class, of the images whose labels are ``every``: those without a row count as wrong."""
    totals = Counter(row.label for row in rows) if every is None else Counter(every)
    if not totals:
        return None
    classes = sorted(totals)
    by_class = {label: Counter(row.status.value for row in rows if row.label == label) for label in classes}
    table = []
    for label, counts in by_class.items():
        total = totals[label]
        low, high = wilson(counts["verified"], total)
        natural = 100 * (sum(counts.values()) - counts["misclassified"]) / total
        verified = 100 * counts["verified"] / total
        table.append((str(label), str(total), f"{natural:.1f}", f"{verified:.1f}", f"{low:.1f} to {high:.1f}"))
    shares = {status: [100 * by_class[label][status] / totals[label] for label in classes] for status in ORDER}
    names = [f"class {label}" for label in classes]
    pictures = (
        [Picture("classes", "Status by class.", figures.stacked(names, shares, "% of the class"))] if rows else []
    )
    header = ("class", "images", "natural %", "verified %", "95 % interval")
    return Section("By class", "", pictures, [Table(header, table)])


def _by_radius(radii: tuple[Mapping[str, Any], Mapping[int, RadiusRow]], eps: float) -> Section:
    head, rows = radii
    summary = summarize_radii(head, rows.values())
    points = summary["accuracy"]
    values = [[point[key] for point in points] for key in ("eps", "percent", "low", "high")]
    bounds = ", ".join(stage["name"] for stage in head["stages"])
    text = (
        f"For each image the largest radius at which one of {bounds} holds, by bisection. Mean "
        f"{summary['mean_radius']:.4g}, median {summary['median_radius']:.4g}."
    )
    picture = Picture("radius", "Images certified at each radius.", figures.curve(*values, mark=eps))
    table = [
        (f"{p['eps']:.4g}", f"{p['percent']:.2f}", f"{p['low']:.2f} to {p['high']:.2f}", str(p["count"]))
        for p in points[:: max(1, len(points) // 10)]
    ]
    header = ("radius", "certified %", "95 % interval", "images")
    return Section("Certified accuracy by radius", text, [picture], [Table(header, table)])


def _layers(
    network: BoundedNetwork, images: Tensor, labels: Tensor, rows: Mapping[int, Row], eps: float, sample: int
) -> Section | None:
    chosen = [row.index for row in rows.values() if row.status is not Status.MISCLASSIFIED][:sample]
    if not chosen:
        return None
    x = pixels(images[chosen], torch.float32)
    layers = bounds_by_layer(network, x, labels[chosen], eps)
    if not layers:
        return None
    names = [f"ReLU {at}" for at in range(1, len(layers) + 1)]
    methods = list(layers[0].width)
    pictures = [
        Picture(
            "unstable", "Neurons whose sign the bounds leave open.", _bars(names, layers, "unstable", "unstable %")
        ),
        Picture(
            "width",
            "Mean width of the bounds before each ReLU: less is tighter.",
            _bars(names, layers, "width", "mean width"),
        ),
    ]
    header = ("layer", "neurons", *(f"unstable % {m}" for m in methods), *(f"width {m}" for m in methods))
    table = [
        (
            name,
            str(layer.neurons),
            *(f"{layer.unstable[m]:.1f}" for m in methods),
            *(_short(layer.width[m]) for m in methods),
        )
        for name, layer in zip(names, layers, strict=True)
    ]
    text = f"Averages over {len(chosen)} images that are classified correctly."
    return Section("Bounds by layer", text, pictures, [Table(header, table)])


def _bars(names: list[str], layers: list[LayerBounds], what: str, ylabel: str) -> bytes:
    values = {method: [getattr(layer, what)[method] for layer in layers] for method in layers[0].width}
    return figures.by_layer(names, values, ylabel)


def _counterexamples(
    folder: Path, rows: Mapping[int, Row], images: Tensor, network: BoundedNetwork | None, eps: float
) -> Section | None:
    falsified = [row for row in rows.values() if row.status is Status.FALSIFIED]
    triples, table = [], []
    for row in sorted(falsified, key=lambda one: one.index)[:SHOWN]:
        try:
            found = load_witness(folder, row)
        except UserError:
            continue  # check says so, loudly; a report shows what there is
        image = pixels(images[row.index], torch.float32).numpy()
        if found.shape != image.shape:
            continue
        seen, margin = _seen(network, found, row.label)
        triples.append((image, found, f"image {row.index}\n{row.label} → {seen}"))
        largest = f"{np.abs(found - image).max():.4g}"
        table.append((str(row.index), str(row.label), seen, margin, largest, row.decided_by or ""))
    if not triples:
        return None
    text = (
        f"{len(falsified)} images have a point within eps that is not classified as their label; the first "
        f"{len(triples)} are shown. In the difference, grey is no change."
    )
    picture = Picture(
        "counterexamples", "Images, counterexamples, and their difference.", figures.counterexamples(triples, eps)
    )
    header = ("image", "label", "becomes", "margin", "largest change", "found by")
    return Section("Counterexamples", text, [picture], [Table(header, table)])


def _seen(network: BoundedNetwork | None, found: np.ndarray, label: int) -> tuple[str, str]:
    """Return the class that a counterexample gets other than its label, and its margin."""
    if network is None:
        return "?", ""
    with torch.no_grad():
        logits = network(torch.from_numpy(found)[None].to(network.mean))
    margin = margins_of(logits, torch.tensor([label])).min().item()
    others = logits[0].clone()
    others[label] = -torch.inf  # where both are equal, argmax might name the label
    return str(int(others.argmax())), f"{margin:.3g}"


def _close_calls(rows: Mapping[int, Row]) -> Section | None:
    known = [row for row in rows.values() if row.margin is not None]
    verified = sorted((row for row in known if row.status is Status.VERIFIED), key=lambda row: row.margin)[:5]
    unknown = sorted((row for row in known if row.status is Status.UNKNOWN), key=lambda row: -row.margin)[:5]
    if not verified and not unknown:
        return None
    header = ("image", "label", "status", "lower bound of the margin", "seconds")
    table = [
        (str(row.index), str(row.label), row.status.value, f"{row.margin:.3g}", f"{row.seconds:.2f}")
        for row in [*verified, *unknown]
    ]
    text = "The verified images with the least to spare, and the undecided ones that lack the least."
    return Section("Close calls", text, tables=[Table(header, table)])


def _settings(head: Mapping[str, Any]) -> Section:
    plain = ["eps", "dataset", "split", "images", "shard", "dtype", "seed", "weights_sha256", "data_sha256"]
    rows = [(key, str(head[key])) for key in plain if head.get(key) not in (None, "")]
    for made_with in head["made_with"]:
        rows.append(("made with", ", ".join(f"{key} {value}" for key, value in made_with.items() if value)))
    rows += [(f"{stage} was skipped", reason) for stage, reason in head["skipped"].items()]
    stages = []
    for stage in head["stages"]:
        fields = {key: value for key, value in stage.items() if key != "name"}
        said = (f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in fields.items())
        stages.append((stage["name"], ", ".join(said) or "no settings"))
    tables = [Table(("stage", "settings"), stages, textual=True), Table(("setting", "value"), rows, textual=True)]
    return Section("What was asked", tables=tables)


def _short(value: float) -> str:
    return f"{value:.3g}"
