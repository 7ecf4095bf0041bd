"""Shards and their merge; a ledger checked from outside, honest ones and tampered ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from test_tolerance import cancelling
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.rounding import Rounding
from expressive_losses.config import Radius
from expressive_losses.errors import UserError
from expressive_losses.verify import Problem, Settings, Status, build_stages, read_ledger, verify
from expressive_losses.verify.base import Verdict
from expressive_losses.verify.check import Contradiction, check, disjoint
from expressive_losses.verify.merge import merge
from expressive_losses.verify.mip import Mip
from expressive_losses.verify.shard import Shard, parse_shard, shard_of_rank

EPS = 0.1


def network(seed: int = 0) -> BoundedNetwork:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return BoundedNetwork(model, (1, 2, 2), 3, mean=[0.4], std=[0.5])


def data(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = network().eval()(images / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return images, labels


def run(out, bound="ibp,crown", eps=EPS, **options):
    images, labels = data()
    asked = {"network": network(), "stages": build_stages(bound)}
    asked |= {key: options.pop(key) for key in ("network", "stages") if key in options}
    settings = Settings(progress=False, batch_size=8, **options)
    return verify(images=images, labels=labels, eps=eps, out=out, settings=settings, **asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One honest run; tests that change it make a copy."""
    out = tmp_path_factory.mktemp("honest")
    run(out)
    return out


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(folder, change) -> None:
    """Apply ``change(rows)`` to the rows, a list of dicts, and write the ledger back."""
    path = folder / "ledger.jsonl"
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))


def first(folder, status) -> int:
    return min(index for index, row in read_ledger(folder)[1].items() if row.status is status)


def set_fields(which, /, **fields):
    def change(rows):
        next(row for row in rows if row["index"] == which).update(fields)

    return change


# ------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("count", [1, 3, 40])
def test_merged_shards_are_the_whole_run(tmp_path, folder, count):
    shards = [Shard(number, count) for number in range(count)]
    for shard in shards:
        summary = run(shard.folder(tmp_path), shard=shard)
        assert summary["images"] == len(shard.indices(30))
        assert set(read_ledger(shard.folder(tmp_path))[1]) == set(shard.indices(30))
    merged = merge([shard.folder(tmp_path) for shard in reversed(shards)], tmp_path / "all")
    whole = json.loads((folder / "summary.json").read_text())
    assert merged["status"] == whole["status"] and merged["settings"] == whole["settings"]
    head, rows = read_ledger(tmp_path / "all")
    assert list(rows) == list(range(30)) and head == read_ledger(folder)[0]
    statuses = {index: row.status for index, row in read_ledger(folder)[1].items()}
    assert {index: row.status for index, row in rows.items()} == statuses
    assert check(tmp_path / "all", network(), *data(), bounds=True).rows == 30


def test_a_merged_ledger_resumes_as_the_whole_run(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for number, out in enumerate(folders):
        run(out, shard=(number, 2))
    merge(folders, tmp_path / "all")
    before = (tmp_path / "all" / "ledger.jsonl").read_bytes()
    run(tmp_path / "all", resume=True)
    assert (tmp_path / "all" / "ledger.jsonl").read_bytes() == before


def test_merge_refuses_gaps_and_overlaps(tmp_path, folder):
    for number in range(2):
        run(tmp_path / str(number), shard=(number, 2))
    one, two = tmp_path / "0", tmp_path / "1"
    with pytest.raises(UserError, match="gap: 15 of 30 images have no row, the first is 1; a shard is not among"):
        merge([one], tmp_path / "all")
    with pytest.raises(UserError, match="overlap: image 0"):
        merge([one, two, folder], tmp_path / "all")
    edit(two, lambda rows: rows.pop())
    with pytest.raises(UserError, match="finish shard 1/2 with --resume"):
        merge([one, two], tmp_path / "all")
    edit(two, lambda rows: rows[0].update(index=28))
    with pytest.raises(UserError, match="image 28 is not one that this ledger was asked for"):
        merge([one, two], tmp_path / "all")
    assert not (tmp_path / "all" / "ledger.jsonl").exists()


@pytest.mark.parametrize("other", [{"eps": 0.2}, {"network": network(1)}, {"seed": 3}, {"bound": "ibp"}])
def test_merge_refuses_other_runs(tmp_path, other):
    run(tmp_path / "0", shard=(0, 2))
    run(tmp_path / "1", shard=(1, 2), **other)
    with pytest.raises(UserError, match="answers another question.*nothing but the shard"):
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")


def test_the_same_radius_in_other_words_is_the_same_question(tmp_path):
    """A ledger goes on, and shards are joined; what was written first stays."""
    for number, text in enumerate(["1e-1", "1/10"]):
        run(tmp_path / str(number), shard=(number, 2), eps=Radius.parse(text))
    run(tmp_path / "1", shard=(1, 2), eps=Radius.parse("0.10"), resume=True)
    summary = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    assert (summary["settings"]["eps"], summary["settings"]["eps_value"]) == ("1e-1", 0.1)


def test_merge_refuses_a_ledger_that_is_there(tmp_path, folder):
    with pytest.raises(UserError, match="is there already"):
        merge([folder], folder)
    with pytest.raises(UserError, match="got none"):
        merge([], tmp_path)


def test_a_shard_does_not_resume_another(tmp_path):
    run(tmp_path, shard=(0, 2))
    with pytest.raises(UserError, match="shard"):
        run(tmp_path, shard=(1, 2), resume=True)


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/2", "1", "a/b", "1/2/3", ""])
def test_shards_that_are_none(text):
    with pytest.raises(UserError, match="expected i/n"):
        parse_shard(text)


def test_shard_by_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert shard_of_rank() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert shard_of_rank() == parse_shard("3/4") == (3, 4)
    monkeypatch.setenv("RANK", "last")
    with pytest.raises(UserError, match="RANK and WORLD_SIZE"):
        shard_of_rank()


# -------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_honest_ledger_holds(tmp_path, dtype):
    run(tmp_path, bound="cascade", dtype=dtype)
    checked = check(tmp_path, network(), *data(), bounds=True, attacks=build_stages("pgd")[1:])
    assert checked.attacked == checked.bounds > 0 and "attacked again, in vain" in str(checked)
    rows = read_ledger(tmp_path)[1].values()
    assert checked.rows == 30 and checked.missing == 0
    assert checked.counterexamples == sum(row.status is Status.FALSIFIED for row in rows) > 0
    assert checked.bounds == sum(row.status is Status.VERIFIED for row in rows) > 0
    assert checked.rounding < 1e-4
    assert "counterexamples hold" in str(checked)


@pytest.mark.parametrize(
    "status, fields, finding",
    [
        (
            Status.UNKNOWN,
            {"status": "verified", "decided_by": "crown"},
            "margin -.*not above its threshold",
        ),
        (Status.FALSIFIED, {"status": "verified", "decided_by": "crown", "margin": 1.0}, "has a counterexample"),
        (Status.FALSIFIED, {"witness": None}, "names 'None'"),
        (Status.FALSIFIED, {"witness": "../../secret.npy"}, "not its own file"),
        (Status.FALSIFIED, {"decided_by": "crown"}, "no attack of this run"),
        (Status.MISCLASSIFIED, {"status": "verified", "margin": 1.0, "decided_by": "ibp"}, "clean margin is -"),
        (Status.VERIFIED, {"status": "misclassified"}, "is misclassified but its clean margin"),
        (Status.VERIFIED, {"decided_by": "pgd"}, "no bound of this run"),
        (Status.VERIFIED, {"margin": 9e-5}, "margin 9e-05, not above its threshold of 0.0001"),
        (Status.VERIFIED, {"margin": None}, "margin None, not above"),
        (Status.VERIFIED, {"label": 7}, "not 7"),
        (Status.VERIFIED, {"index": 99}, "image 99 was not asked for"),
    ],
)
def test_tampered_rows_are_found(tmp_path, folder, status, fields, finding):
    copy = copy_of(folder, tmp_path)
    edit(copy, set_fields(first(copy, status), **fields))
    with pytest.raises(Contradiction, match=finding):
        check(copy, network(), *data())


def test_a_false_proof_is_found_by_bounds_and_by_attacks(tmp_path, folder):
    copy = copy_of(folder, tmp_path)
    liar = first(copy, Status.FALSIFIED)
    (copy / f"witnesses/{liar:06d}.npy").unlink()
    edit(copy, set_fields(liar, status="verified", decided_by="crown", margin=0.5, witness=None))
    assert check(copy, network(), *data()).rows == 30  # nothing looks wrong until it is computed again
    with pytest.raises(Contradiction, match=f"image {liar} is verified by crown, which in float64 gives a margin of -"):
        check(copy, network(), *data(), bounds=True)
    with pytest.raises(Contradiction, match=f"image {liar} is verified but pgd finds a counterexample"):
        check(copy, network(), *data(), attacks=build_stages("pgd")[1:])


def test_a_margin_that_is_more_than_was_computed_is_found(tmp_path, folder):
    """The image is robust, but not by as much as the row says."""
    copy = copy_of(folder, tmp_path)
    index = first(copy, Status.VERIFIED)
    margin = read_ledger(copy)[1][index].margin
    edit(copy, set_fields(index, margin=margin + 1e-3))
    assert check(copy, network(), *data()).rows == 30
    with pytest.raises(Contradiction, match=f"image {index} is verified with margin .* in float64 gives"):
        check(copy, network(), *data(), bounds=True)
    edit(copy, set_fields(index, margin=margin - 1e-5))
    assert check(copy, network(), *data(), bounds=True).bounds > 0


def test_a_bound_that_float64_cannot_tell_from_zero_is_no_proof(tmp_path):
    """The network of test_tolerance.py with f_0 - f_1 < 0 everywhere, but proven by float32 and a tolerance of 0."""
    for seed in range(12):
        net, x = cancelling(seed, size=20.0)
        label, out = torch.zeros(1, dtype=torch.long), tmp_path / str(seed)
        stages = build_stages("clean,ibp", tolerance=0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rounding, "over", lambda self, box, dtype=None: torch.zeros(len(box)))
            patch.setattr(Rounding, "everywhere", 0.0, raising=False)
            patch.setattr(Problem, "proven", lambda self, margins, tolerance: margins.amin(1) > 0)
            summary = verify(net, x, label, 0.0, stages, out, Settings(progress=False))
        if summary["verified"]["count"]:
            with pytest.raises(Contradiction, match="in float64 gives a margin of -"):
                check(out, net, x, label, bounds=True)
            return
    pytest.fail("none was proven wrongly")


def test_a_solver_of_mips_is_not_taken_at_its_word(tmp_path, monkeypatch):
    """One that finds every optimum to be 1 proves everything, also when it is asked again."""
    run(tmp_path / "honest", "clean,mip", eps=0.3)
    assert check(tmp_path / "honest", network(), *data(), bounds=True).unconfirmed == ()
    monkeypatch.setattr(Mip, "__call__", lambda self, network, problem: everything_is_robust(problem))
    run(tmp_path / "lies", "clean,mip", eps=0.3)
    with pytest.raises(Contradiction, match="is verified but bab finds a counterexample"):
        check(tmp_path / "lies", network(), *data(), bounds=True)


def everything_is_robust(problem: Problem) -> Verdict:
    return Verdict((Status.VERIFIED,) * len(problem), torch.ones_like(problem.margins))


@pytest.mark.parametrize(
    "spoil, finding",
    [
        (lambda x: x + np.float32(0.01), "outside its box"),
        (lambda x: np.full_like(x, np.nan), "outside its box"),
        (lambda x: x[0], "has shape"),
        (lambda x: x.astype(np.int64), "array of floats"),
        (lambda x: np.array([{"code": 1}], dtype=object), "cannot be read"),
    ],
)
def test_tampered_counterexamples_are_found(tmp_path, folder, spoil, finding):
    copy = copy_of(folder, tmp_path)
    path = copy / read_ledger(copy)[1][first(copy, Status.FALSIFIED)].witness
    np.save(path, spoil(np.load(path)), allow_pickle=True)
    with pytest.raises(Contradiction, match=finding):
        check(copy, network(), *data())


def test_a_point_that_is_classified_correctly_is_no_counterexample(tmp_path, folder):
    copy, (images, labels) = copy_of(folder, tmp_path), data()
    index = first(copy, Status.FALSIFIED)
    np.save(copy / f"witnesses/{index:06d}.npy", (images[index].float() / 255).numpy())
    with pytest.raises(Contradiction, match="has margin 0.* > 0"):
        check(copy, network(), images, labels)


def test_a_missing_counterexample_is_found(tmp_path, folder):
    copy = copy_of(folder, tmp_path)
    (copy / f"witnesses/{first(copy, Status.FALSIFIED):06d}.npy").unlink()
    with pytest.raises(Contradiction, match="cannot be read"):
        check(copy, network(), *data())


def test_another_network_or_data_is_refused(folder):
    images, labels = data()
    with pytest.raises(UserError, match="weights_sha256.*Give the network and the data"):
        check(folder, network(1), images, labels)
    with pytest.raises(UserError, match="data_sha256"):
        check(folder, network(), 255 - images, labels)


def test_check_leaves_the_network_alone(folder):
    net = network().train()
    check(folder, net, *data())
    assert net.training and net.mean.dtype is torch.float32


def test_verified_and_falsified_are_disjoint_across_ledgers(tmp_path, folder):
    run(tmp_path / "small", eps=0.05)
    run(tmp_path / "large", eps=0.2)
    assert disjoint([folder, tmp_path / "small", tmp_path / "large"]) == 3
    index = first(tmp_path / "small", Status.FALSIFIED)
    edit(tmp_path / "large", set_fields(index, status="verified"))
    with pytest.raises(Contradiction, match=f"image {index} is verified there but falsified"):
        disjoint([folder, tmp_path / "small", tmp_path / "large"])
