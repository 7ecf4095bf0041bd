"""Certified radii: exact on linear networks, each one proven itself, resumable."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.types import Box, margins_of
from expressive_losses.verify import Problem, Settings, Status, Verdict, Verifier, build_stages
from expressive_losses.verify.check import Contradiction
from expressive_losses.verify.check_radius import check_radii
from expressive_losses.verify.radius import certified_radii, radius_table, read_radii, summarize_radii

LARGEST = 0.25


def linear() -> BoundedNetwork:
    torch.manual_seed(0)
    return BoundedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3, [0.4], [0.5]).eval()


def mlp() -> BoundedNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return BoundedNetwork(model, (1, 2, 2), 3).eval()


def data(network, count=20):
    """Images at least LARGEST away from 0 and 1, so that no ball is clipped; every fifth label is wrong."""
    x = 0.3 + 0.4 * torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = network(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % 3
    return x, labels


def run(network, out, bound="ibp,crown", steps=10, **options):
    images, labels = data(network)
    settings = Settings(progress=False, **options)
    return certified_radii(network, images, labels, LARGEST, build_stages(bound), out, settings, steps)


@pytest.mark.parametrize("bound, batch_size", [("crown", None), ("ibp", 3), ("crown_ibp", None)])
def test_exact_on_a_linear_network(tmp_path, bound, batch_size):
    """f_y - f_j changes by at most eps * sum |w_y - w_j| / std, and does: the radius is the margin over that sum."""
    network = linear()
    run(network, tmp_path, bound, batch_size=batch_size, steps=12)
    images, labels = data(network)
    weight = network.model[1].weight.detach() / 0.5
    slopes = (weight.unsqueeze(1) - weight.unsqueeze(0)).abs().sum(2)  # (K, K)
    others = torch.tensor([[j for j in range(3) if j != y] for y in labels])
    exact = (margins_of(network(images), labels) / slopes[labels.unsqueeze(1), others]).min(1).values
    for index, row in read_radii(tmp_path)[1].items():
        if exact[index] <= 0:
            assert row.radius is None and row.failed is None
        else:
            want = min(exact[index].item(), LARGEST)
            # 1e-3: bounds must exceed the tolerance of 1e-4 logits, at slopes above 0.1
            assert want - LARGEST / 2**12 - 1e-3 <= row.radius <= want + 1e-6
    assert sum(row.radius is None for row in read_radii(tmp_path)[1].values()) == 4


def test_what_is_reported_held(tmp_path):
    network = mlp()
    run(network, tmp_path)
    images, labels = data(network)
    rows = read_radii(tmp_path)[1].values()
    assert {row.decided_by for row in rows} >= {"crown", None}
    for row in rows:
        if row.decided_by:
            at = slice(row.index, row.index + 1)
            box = Box.around(images[at], row.radius)
            assert (network.margins(box, labels[at], row.decided_by) > 0).all()
            assert row.failed is None or row.radius < row.failed <= row.radius + LARGEST / 2**10 + 1e-6


def test_more_bounds_reach_farther(tmp_path):
    network = mlp()
    run(network, tmp_path / "ibp", "ibp")
    run(network, tmp_path / "both", "ibp,crown")
    one, both = (read_radii(tmp_path / name)[1] for name in ("ibp", "both"))
    assert all((one[i].radius or 0) <= (both[i].radius or 0) + LARGEST / 2**9 for i in one)


def test_summary_counts(tmp_path):
    summary = run(mlp(), tmp_path)
    rows = read_radii(tmp_path)[1].values()
    table = summary["accuracy"]
    assert table[0]["count"] == 16 and table[0]["eps"] == 0  # what is classified correctly
    assert table[-1]["count"] == sum(row.failed is None and row.radius is not None for row in rows)
    assert all(after["count"] <= before["count"] for before, after in zip(table, table[1:], strict=False))
    assert json.loads((tmp_path / "radius.json").read_text()) == summary
    assert "mean radius" in radius_table(summary)


def test_resume_and_refusal(tmp_path):
    network = mlp()
    run(network, tmp_path, batch_size=5)
    path = tmp_path / "radius.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]) + b'{"index"')
    run(network, tmp_path, batch_size=5, resume=True)
    rows = read_radii(tmp_path)[1]
    assert sorted(rows) == list(range(20))
    with pytest.raises(UserError, match="there already"):
        run(network, tmp_path)
    with pytest.raises(UserError, match="steps is 10 there, 4 here"):
        run(network, tmp_path, resume=True, steps=4)


@pytest.mark.parametrize("key", ["radius", "failed"])
def test_a_row_whose_radius_is_no_number_is_refused(tmp_path, key):
    run(mlp(), tmp_path)
    path = tmp_path / "radius.jsonl"
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, json.dumps({**json.loads(first), key: "0.1"}), *rest]) + "\n")
    with pytest.raises(UserError, match=f"{key} '0.1'"):
        read_radii(tmp_path)


def test_no_time_no_rows(tmp_path):
    summary = run(mlp(), tmp_path, budget=0.0)
    assert summary["not_reached"] == 20 and summary["accuracy"][0]["count"] == 0
    assert "20 images not reached in time" in radius_table(summary)


def test_needs_a_bound(tmp_path):
    with pytest.raises(UserError, match="expected a bound"):
        run(mlp(), tmp_path, bound="clean,pgd")


class Recording(Verifier):
    """Verifies boxes narrower than 0.1 and notes what it was asked."""

    name: ClassVar[str] = "recording"
    kind: ClassVar[str] = "bound"
    batch_sizes: ClassVar[tuple[int, int]] = (7, 7)
    seen: ClassVar[dict[int, set[float]]] = {}

    def __call__(self, network, problem):
        for index, noise in zip(problem.indices, problem.generators("noise"), strict=True):
            self.seen.setdefault(index, set()).add(torch.rand(1, generator=noise).item())
        width = (problem.box.upper - problem.box.lower).flatten(1).amax(1)
        status = tuple(Status.VERIFIED if one < 0.1 else Status.UNKNOWN for one in width.tolist())
        return Verdict(status, torch.where(width < 0.1, 1.0, -1.0).unsqueeze(1).expand_as(problem.margins))


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"shard": (1, 3)}])
def test_an_image_has_its_own_noise_in_every_batch_and_shard(tmp_path, options):
    network = mlp()
    Recording.seen.clear()
    images, labels = data(network)
    settings = Settings(progress=False, **options)
    certified_radii(network, images, labels, LARGEST, [Recording()], tmp_path, settings)
    rows = read_radii(tmp_path)[1]
    assert Recording.seen.keys() == {index for index, row in rows.items() if row.radius is not None}
    empty = Problem.of(network, images, labels, 0.0)
    for index, drawn in Recording.seen.items():
        assert drawn == {torch.rand(1, generator=empty.generators("noise")[index]).item()}
    assert {row.radius for row in rows.values() if row.radius is not None} == {LARGEST * 204 / 1024}  # 2 r < 0.1


def test_radii_are_the_numbers_that_were_tried(tmp_path):
    """0.1 is no float32: a radius stored in float32 would be 1.5e-9 larger than the largest that was asked for."""
    network = mlp()
    images, labels = data(network)
    certified_radii(network, images, labels, 0.1, build_stages("ibp,crown"), tmp_path, Settings(progress=False))
    rows = [row for row in read_radii(tmp_path)[1].values() if row.radius is not None]
    assert {row.radius for row in rows if row.failed is None} == {0.1}
    for row in rows:
        for tried in (row.radius, *([] if row.failed is None else [row.failed])):
            assert math.isclose(round(tried / 0.1 * 1024) * 0.1 / 1024, tried, rel_tol=1e-15)
    assert summarize_radii(*read_head(tmp_path))["accuracy"][-1]["count"] == sum(row.failed is None for row in rows)


def read_head(folder):
    head, rows = read_radii(folder)
    return head, rows.values()


# ------------------------------------------------------------------------------------------------------- check


def test_honest_radii_hold(tmp_path):
    network = mlp()
    run(network, tmp_path, "ibp,crown,bab", steps=4)
    checked = check_radii(tmp_path, network, *data(network), bounds=True, attacks=build_stages("pgd")[1:])
    reached = sum(bool(row.radius) for row in read_radii(tmp_path)[1].values())
    assert checked.rows == 20 and checked.bounds + len(checked.unconfirmed) == reached == checked.attacked > 0
    assert "radii hold in float64" in str(checked)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda row: {"radius": row.failed + 0.05, "failed": None}, "in float64 gives a margin of -|finds a counterex"),
        (lambda row: {"radius": 0.3}, "has radius 0.3.*at most 0.25"),
        (lambda row: {"radius": None}, "has radius None but its clean margin is"),
        (lambda row: {"decided_by": "pgd"}, "no bound of this run"),
        (lambda row: {"label": (row.label + 1) % 3}, "has label"),
    ],
)
def test_tampered_radii_are_found(tmp_path, change, finding):
    network = mlp()
    run(network, tmp_path, steps=6)
    row = next(row for row in read_radii(tmp_path)[1].values() if row.radius and row.failed and row.failed < 0.2)
    path = tmp_path / "radius.jsonl"
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line["index"] == row.index).update(change(row))
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))
    with pytest.raises(Contradiction, match=f"image {row.index} .*({finding})"):
        check_radii(tmp_path, network, *data(network), bounds=True)
