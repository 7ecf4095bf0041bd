"""Whole runs: rows, resume after a death at any moment, refusals, the budget, the summary's arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Radius
from expressive_losses.errors import UserError
from expressive_losses.types import Box
from expressive_losses.verify import (
    Ledger,
    Row,
    Settings,
    Status,
    build_stages,
    read_ledger,
    summarize,
    table_of,
    verify,
)
from expressive_losses.verify.base import is_counterexample
from expressive_losses.verify.merge import merge
from expressive_losses.verify.radius import certified_radii
from expressive_losses.verify.summary import wilson

EPS = 0.1
QUIET = Settings(progress=False)


def network(seed: int = 0) -> BoundedNetwork:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return BoundedNetwork(model, (1, 2, 2), 3)


def data(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images, labelled by the network but for every seventh."""
    images = torch.randint(256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = network()(images / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return images, labels


def run(out, bound="ibp,crown", eps=EPS, batch_size=10, **options):
    images, labels = data()
    asked = {"network": network(), "stages": build_stages(bound)}
    asked |= {key: options.pop(key) for key in ("network", "stages") if key in options}
    settings = Settings(progress=False, batch_size=batch_size, **options)
    return verify(images=images, labels=labels, eps=eps, out=out, settings=settings, **asked)


def rows_without_seconds(folder) -> dict[int, dict]:
    return {index: {**vars(row), "seconds": None} for index, row in read_ledger(folder)[1].items()}


def verified_in(rows: dict[int, Row]) -> set[int]:
    return {index for index, row in rows.items() if row.status is Status.VERIFIED}


class Killed(BaseException):
    """What a signal does: it is not an Exception."""


def run_and_die(monkeypatch, out, after: int):
    append = Ledger.append

    def dying(self, outcome):
        if len(self.rows) == after:
            raise Killed
        return append(self, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", dying)
        with pytest.raises(Killed):
            run(out)


def test_a_run_leaves_a_row_for_every_image(tmp_path):
    net = network()
    summary = run(tmp_path, network=net)
    head, rows = read_ledger(tmp_path)
    assert sorted(rows) == list(range(24))
    assert {row.status for row in rows.values()} == set(Status)
    assert head["eps_value"] == EPS
    assert [stage["name"] for stage in head["stages"]] == ["clean", "ibp", "pgd", "crown"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["images"] == 24 == sum(summary["status"].values())
    assert net.training and net.model.training  # the caller's network is as it was


def test_witnesses_are_counterexamples(tmp_path):
    run(tmp_path)
    images, labels = data()
    box = Box.around(images.float() / 255, EPS)
    falsified = [row for row in read_ledger(tmp_path)[1].values() if row.status is Status.FALSIFIED]
    assert falsified
    for row in falsified:
        x = torch.from_numpy(np.load(tmp_path / row.witness))[None]
        at = slice(row.index, row.index + 1)
        assert is_counterexample(network().eval(), box[at], labels[at], x).all()


def test_verified_rows_have_positive_margins(tmp_path):
    run(tmp_path)
    verified = [row for row in read_ledger(tmp_path)[1].values() if row.status is Status.VERIFIED]
    assert verified
    assert all(row.margin > 0 and row.decided_by in ("ibp", "crown") and row.witness is None for row in verified)


@pytest.mark.parametrize("after", [0, 1, 7, 13, 23])
def test_a_run_that_died_goes_on_to_the_same_rows(monkeypatch, tmp_path, after):
    run(tmp_path / "whole")
    run_and_die(monkeypatch, tmp_path / "died", after)
    assert len(read_ledger(tmp_path / "died")[1]) == after
    summary = run(tmp_path / "died", resume=True)
    assert rows_without_seconds(tmp_path / "died") == rows_without_seconds(tmp_path / "whole")
    assert summary["not_reached"] == 0


def test_a_finished_run_resumes_to_itself(tmp_path):
    run(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    run(tmp_path, resume=True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("tail", [b'{"index": 3, "lab', b"\x00\x00\x00\n", b"{}\n"])
def test_a_torn_last_line_is_dropped(monkeypatch, tmp_path, tail):
    run_and_die(monkeypatch, tmp_path, 7)
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(tail)
    assert len(read_ledger(tmp_path)[1]) == 7
    run(tmp_path, resume=True)
    assert sorted(read_ledger(tmp_path)[1]) == list(range(24))


def test_a_ledger_that_died_in_its_first_line_starts_again(tmp_path):
    (tmp_path / "ledger.jsonl").write_bytes(b'{"format": "expr')
    run(tmp_path)
    assert len(read_ledger(tmp_path)[1]) == 24


def test_an_existing_ledger_needs_resume(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="is there already: --resume"):
        run(tmp_path)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"eps": 0.2}, "eps is '0.1' there, '0.2' here; eps_value"),
        ({"network": network(2)}, "weights_sha256"),
        ({"dataset": "mnist"}, "dataset is '' there, 'mnist' here"),
        ({"first": 5}, "first is None there, 5 here|data_sha256"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"dtype": "float64"}, "dtype"),
        (
            {"stages": build_stages("ibp,crown", {"pgd": {"steps": 41}})},
            r"stages.2.steps is 40 there, 41 here",
        ),
        ({"stages": build_stages("ibp")}, r"stages.3.name is 'crown' there, None here"),
    ],
)
def test_a_ledger_of_another_question_is_refused(tmp_path, change, what):
    run(tmp_path)
    with pytest.raises(UserError, match=f"answers another question: .*({what})"):
        run(tmp_path, resume=True, **change)


def test_corrupt_and_duplicate_rows_are_refused(tmp_path):
    run(tmp_path)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"garbage\n", *lines[4:]]))
    with pytest.raises(UserError, match="line 5: not a row of a ledger"):
        run(tmp_path, resume=True)
    path.write_bytes(b"".join([*lines, lines[3], lines[4]]))
    with pytest.raises(UserError, match=f"line {len(lines) + 1}: image .* has a second row"):
        run(tmp_path, resume=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match="the first line is not the head"):
        run(tmp_path, resume=True)


def test_a_second_writer_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    head = {"images": 1}
    with Ledger(tmp_path, head), pytest.raises(UserError, match="is being written by another process"):
        Ledger(tmp_path, head, resume=True)
    Ledger(tmp_path, head, resume=True)  # free again


def test_no_ledger_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="expected a folder that verify.py wrote"):
        read_ledger(tmp_path)


def test_images_not_reached_in_time_count_as_wrong_and_are_left_to_resume(tmp_path):
    summary = run(tmp_path, budget=0.0)
    assert (summary["not_reached"], summary["verified"]["count"], summary["natural"]["count"]) == (24, 0, 0)
    assert read_ledger(tmp_path)[1] == {}
    assert "24 images not reached in time count as wrong" in table_of(summary)
    assert run(tmp_path, resume=True)["not_reached"] == 0


def test_float_images_and_float64_prove_the_same(tmp_path):
    run(tmp_path / "a")
    images, labels = data()
    stages = build_stages("ibp,crown")
    verify(network(), images / 255, labels, EPS, stages, tmp_path / "b", Settings(dtype="float64", progress=False))
    a, b = (read_ledger(tmp_path / name)[1] for name in "ab")
    assert verified_in(a) == verified_in(b) != set()


def test_degenerate_eps(tmp_path):
    summary = run(tmp_path, eps=0.0)
    assert summary["verified"]["count"] == summary["natural"]["count"] == 20


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eps": -0.1}, "eps: expected a radius in pixel units, from 0 to 1"),
        ({"eps": math.nan}, "eps: expected a radius in pixel units, from 0 to 1"),
        ({"eps": 8.0}, "eps: expected a radius in pixel units, from 0 to 1, got 8.0"),
        ({"first": 0}, "first: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **change)


@pytest.mark.parametrize("stages", ["ibp,crown", "clean,bab", "clean,mip"])
def test_a_network_with_nan_weights_verifies_nothing(tmp_path, stages):
    broken = network()
    broken.model[1].weight.data[0, 0] = math.nan
    summary = run(tmp_path, network=broken, stages=build_stages(stages))
    assert summary["verified"]["count"] == summary["natural"]["count"] == 0


def test_bad_data_is_refused(tmp_path):
    images, labels = data()
    for x, y, message in [
        (images, labels[:3], "expected labels for all"),
        (images[:, :, :1], labels, "the network takes images"),
        (images, labels + 5, "labels: expected 0 to 2"),
        (images.float(), labels, "floats in .0, 1."),
    ]:
        with pytest.raises(UserError, match=message):
            verify(network(), x, y, EPS, build_stages("ibp"), tmp_path, QUIET)
    assert not list(tmp_path.iterdir())


def row(index: int, status: Status, decided_by: str | None) -> Row:
    return Row(index, 0, 0, status, decided_by, None, 0.5, None)


def test_summary_of_literal_rows():
    """Of 10, 1 is not reached, 1 misclassified: natural 8. PGD falsifies 2 of those: adversarial 6."""
    rows = [
        row(0, Status.MISCLASSIFIED, "clean"),
        row(1, Status.FALSIFIED, "pgd"),
        row(2, Status.FALSIFIED, "pgd"),
        row(3, Status.FALSIFIED, "crown"),
        *[row(i, Status.VERIFIED, "ibp") for i in (4, 5, 6)],
        *[row(i, Status.UNKNOWN, None) for i in (7, 8)],
    ]
    head = {"images": 10, "stages": [{"name": name} for name in ("clean", "pgd", "ibp", "crown")]}
    summary = summarize(head, rows, ["pgd"])
    assert summary["natural"]["percent"] == 80
    assert summary["adversarial"]["percent"] == 60
    assert summary["verified"]["percent"] == 30
    assert summary["not_reached"] == 1
    assert summary["status"] == {"misclassified": 1, "falsified": 3, "verified": 3, "unknown": 2}
    assert summary["decided_by"]["pgd"] == {"falsified": 2, "seconds": 1.0}
    assert summary["decided_by"]["undecided"] == {"unknown": 2, "seconds": 1.0}
    assert summary["seconds"] == 4.5
    table = table_of(summary)
    assert "verified       30.00" in table and "3 of 10" in table
    assert summarize(head, rows, [])["adversarial"] is None
    assert "adversarial" not in table_of(summarize(head, rows, []))


def test_a_counterexample_found_before_the_attack_counts_against_adversarial_accuracy():
    """The attack never got that image; a stage after it refutes what the attack has let pass."""
    rows = [row(0, Status.FALSIFIED, "bab"), row(1, Status.VERIFIED, "bab"), row(2, Status.FALSIFIED, "pgd")]
    for order, robust in ((("bab", "pgd"), 1), (("pgd", "bab"), 2)):
        head = {"images": 3, "stages": [{"name": name} for name in ("clean", *order)]}
        assert summarize(head, rows, ["pgd"])["adversarial"]["count"] == robust


def test_natural_accuracy_needs_the_clean_images_first(tmp_path):
    """An attack before it would take misclassified images for refuted ones, which count as natural."""
    for stages in (build_stages("clean,ibp")[1:], build_stages("clean,ibp")[::-1], ()):
        with pytest.raises(UserError, match="the first stage must be 'clean'"):
            run(tmp_path / "out", stages=stages)


class Differs(nn.Module):
    """h_0 - h_1 of two large neurons whose weights differ by less than float32 tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 2, bias=False), nn.Linear(2, 2)
        self.double()
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1e8], [1e8 + 3]], dtype=torch.float64))
            self.last.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
            self.last.bias.copy_(torch.tensor([0.5, 0.0]))

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("ask", [verify, certified_radii])
def test_weights_that_float32_would_round_are_not_verified_in_float32(tmp_path, ask):
    """In float64 class 1 wins, of the rounded weights class 0: that is another network."""
    net, x = BoundedNetwork(Differs(), (1,), 2).double().eval(), torch.full((1, 1), 0.5, dtype=torch.float64)
    asked = (net, x, torch.tensor([0]), EPS, build_stages("ibp"))
    with pytest.raises(UserError, match="'model.first.weight' is float64 and would be rounded to float32"):
        ask(*asked, tmp_path / "rounded", QUIET)
    ask(*asked, tmp_path / "exact", replace(QUIET, dtype="float64"))
    wider = network(0).double()  # of a float32 network: nothing is lost
    images, labels = data()
    ask(wider, images, labels, EPS, build_stages("ibp"), tmp_path / "wider", QUIET)


@pytest.mark.parametrize("k, n, low, high", [(0, 10, 0.0, 27.75), (5, 10, 23.66, 76.34), (10, 10, 72.25, 100.0)])
def test_wilson_interval(k, n, low, high):
    """Values of Wilson's interval at 95 %, as tabulated."""
    assert wilson(k, n) == pytest.approx((low, high), abs=0.005)
    assert wilson(0, 0) == (0.0, 100.0)


def test_a_run_may_go_on_elsewhere_and_the_head_names_both(tmp_path, monkeypatch):
    """What it was computed with informs; the question (here eps) must stay the same."""
    run(tmp_path, budget=0.0)
    monkeypatch.setattr("expressive_losses.verify.run.software_and_device", lambda device: {"device": "another"})
    summary = run(tmp_path, resume=True)
    run(tmp_path, resume=True)  # the same again: nothing to add
    made_with = read_ledger(tmp_path)[0]["made_with"]
    assert [one["device"] == "another" for one in made_with] == [False, True]
    assert {"expressive_losses", "git", "torch", "auto_LiRPA"} <= set(made_with[0])
    assert summary["not_reached"] == 0 and summary["settings"]["made_with"] == made_with
    with pytest.raises(UserError, match="eps is '0.1' there"):
        run(tmp_path, resume=True, eps=0.2)


def sigmoid_network() -> BoundedNetwork:
    torch.manual_seed(0)
    return BoundedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)), (1, 2, 2), 3)


def test_skipped_stages_stay_named_over_resume_and_merge(tmp_path):
    """bab cannot handle a sigmoid. A resumed run that has nothing left to do must still say so, and so must a merge."""
    stages = build_stages("clean,bab,ibp")
    for number in range(2):
        out = tmp_path / f"{number}"
        first = run(out, network=sigmoid_network(), stages=stages, shard=(number, 2))
        again = run(out, network=sigmoid_network(), stages=stages, shard=(number, 2), resume=True)
        assert first["skipped"] == again["skipped"] and set(first["skipped"]) == {"bab", "rounding"}
    merged = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    assert set(merged["skipped"]) == {"bab", "rounding"} and "bab was skipped" in table_of(merged)
    assert set(read_ledger(tmp_path / "all")[0]["skipped"]) == {"bab", "rounding"}


def test_a_ledger_of_radius_1_was_not_changed_by_hand(tmp_path):
    """Ledgers say so that were written before 1 was asked about."""
    run(tmp_path, bound="clean", eps=Radius.recorded("1"))
    assert read_ledger(tmp_path)[0]["eps"] == "1"
