"""What the special figures measure."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from expressive_losses import checkpoint, experiment
from expressive_losses import config as configs
from expressive_losses.data.batches import Batches
from expressive_losses.experiments import polytope
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.measures import end_of_training, losses, measure
from expressive_losses.experiments.observe import Observer
from expressive_losses.registry import LOSSES
from expressive_losses.run import read_jsonl
from expressive_losses.types import Box

SMALL = {
    "model": {"name": "cnn_tiny", "width": 2, "hidden": 4},
    "eps": {"target": "0.05", "schedule": {"length": 1}},
    "training": {"epochs": 2, "seed": 1},
}


def test_interval_bounds_of_the_logits_hold_what_the_network_reaches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    box = Box.around(torch.rand(1, 1, 1, 2), 0.2)
    found = polytope.logit_bounds(model, box)
    inside = box.lower + torch.rand(2000, 1, 1, 2) * (box.upper - box.lower)
    assert ((model(inside) >= found.lower - 1e-6) & (model(inside) <= found.upper + 1e-6)).all()


def test_looseness_is_a_ratio_of_areas():
    shot = {
        "logits": torch.tensor([[0.0, 0.0], [1.0, 2.0]]),
        "lower": torch.tensor([-1.0, 0.0]),
        "upper": torch.tensor([1.0, 4.0]),
    }
    assert polytope.looseness(shot) == pytest.approx(2 * 4 / (1 * 2))


def test_points_are_apart():
    x = polytope.points(torch.Generator().manual_seed(0)).flatten(1)
    distance = (x[:, None] - x[None]).abs().amax(2) + torch.eye(13)
    assert x.shape == (13, 2) and distance.min() >= 2 * polytope.EPS


def test_training_tightens_the_bounds_of_the_toy_problem(tmp_path, capsys):
    main(["polytope", "--results", str(tmp_path)])
    folder = tmp_path / "smoke" / "ibp"
    (row,) = [json.loads(line) for line in (folder / "figure4.jsonl").read_text().splitlines()]
    assert row["looseness"]["0"] > 1000 and 1 <= row["looseness"]["800"] < 2
    assert (folder / "figure4.png").stat().st_size > 1000
    assert polytope.reproduce([0], folder / "figure4") == [row], "what is there is not done again"
    main(["polytope", "--scale", "full", "--shard", "1/2", "--dry-run"])
    assert [line[-1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["1", "3"]


def test_shards_of_the_toy_problem_share_rows_and_picture(tmp_path, monkeypatch):
    """Another process writes its row while this one trains: both stay. Only seed 0 is drawn, whoever has it."""
    out, drawn = tmp_path / "figure4", []

    def row(seed: int, **changes) -> dict:
        return {"seed": seed, "eps": polytope.EPS, "looseness": {"0": 9.0, "200": 2.0, "800": 1.0}, **changes}

    def train_while_another_writes(seed: int):
        with open(out.with_suffix(".jsonl"), "a") as file:
            file.write(json.dumps(row(9 - seed)) + "\n")
        return seed, row(seed, trained="now"), {}

    monkeypatch.setattr(polytope, "_row", train_while_another_writes)
    monkeypatch.setattr(polytope, "draw", lambda shots, path: drawn.append(path))
    assert polytope.reproduce([1], out) == [row(1, trained="now")]
    assert read_jsonl(out.with_suffix(".jsonl")) == [row(1, trained="now"), row(8)] and drawn == []
    assert polytope.reproduce([0, 1], out) == [row(0, trained="now"), row(1, trained="now")]
    assert [one["seed"] for one in read_jsonl(out.with_suffix(".jsonl"))] == [0, 1, 8, 9]
    assert drawn == [out.with_suffix(".png")]
    for changes in ({"eps": 0.1}, {"ramp": 0}, {"looseness": {"0": 9.0}}):
        out.with_suffix(".jsonl").write_text(json.dumps(row(3, **changes)) + "\n")
        assert polytope.reproduce([3], out) == [row(3, trained="now")], f"a row of other settings: {changes}"
    assert polytope.reproduce([3], out) == [row(3, trained="now")]
    assert len(read_jsonl(out.with_suffix(".jsonl"))) == 2, "not trained again"


def test_observing_changes_nothing_and_gives_a_row_an_epoch(tmp_path):
    """CROWN-IBP is never looser than IBP inside the same intermediate bounds: the difference is positive."""
    config = configs.load(None, [SMALL])
    observer = Observer(["tightness", "second_conv_norm"], tmp_path / "seen")
    for name, observe in (("plain", None), ("seen", observer)):
        experiment.train(config, tmp_path / name, torch.device("cpu"), quiet=True, observe=observe)
    plain, seen = (torch.load(tmp_path / name / "model.pt", weights_only=True)["weights"] for name in ("plain", "seen"))
    assert all(torch.equal(plain[key], seen[key]) for key in plain)
    rows = observer.rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["second_conv_norm"] > 0 for row in rows)
    assert 0 <= rows[-1]["natural"] <= 100
    assert rows[-1]["tightness"] > 0


SAME_ATTACK = {"name": "pgd", "steps": 5, "step_size": 0.5, "random_start": False}


@pytest.mark.parametrize("bound", ["ibp", "crown_ibp"])
def test_losses_are_ordered_as_the_paper_proves(tmp_path, bound):
    """adversarial <= loss of training <= IBP, and the better of CROWN and IBP is no larger than IBP's."""
    method = {"name": "mtl_ibp", "alpha": 0.3, "bound": bound}
    config = configs.load(None, [SMALL, {"method": method, "attack": SAME_ATTACK, "test_attack": SAME_ATTACK}])
    experiment.train(config, tmp_path, torch.device("cpu"), quiet=True)
    found = measure("losses", tmp_path / "model.pt", torch.device("cpu"), None)
    assert found["adversarial"] <= found["own"] <= found["ibp"]
    assert found["crown_or_ibp"] <= found["ibp"]
    if bound == "ibp":
        assert found["own"] == pytest.approx(0.7 * found["adversarial"] + 0.3 * found["ibp"], rel=1e-5)
    else:
        assert found["own"] < 0.7 * found["adversarial"] + 0.3 * found["ibp"]


def test_the_loss_of_training_is_under_its_own_attack_in_its_own_region(tmp_path):
    """At alpha 0 and twice the radius it is the adversarial loss at twice the radius."""
    attacks = {"attack": SAME_ATTACK, "test_attack": SAME_ATTACK, "method": {"name": "cc_ibp", "alpha": 0.0}}
    wide = configs.load(None, [SMALL, attacks, {"eps": {"attack_factor": 2}}])
    experiment.train(wide, tmp_path, torch.device("cpu"), quiet=True)
    found = measure("losses", tmp_path / "model.pt", torch.device("cpu"), None)
    network = checkpoint.network_of(checkpoint.read(tmp_path / "model.pt"), "model")
    twice = configs.load(None, [SMALL, attacks, {"eps": {"target": "0.1"}}])
    train, held_out, _ = experiment.load_data(wide, None)
    measured = losses(network, twice, Batches(held_out), end_of_training(twice, Batches(train)))
    assert found["own"] == pytest.approx(measured["adversarial"], rel=1e-5)
    assert found["own"] > found["adversarial"]


def losses_of_a_new_network(method: dict) -> dict[str, float]:
    """Before training, on some digits, with one attack for training and test."""
    config = configs.load(None, [SMALL, {"method": method, "attack": SAME_ATTACK, "test_attack": SAME_ATTACK}])
    network, train, held_out, _ = experiment.prepare(config, torch.device("cpu"))
    some = Batches(replace(held_out.data, images=held_out.data.images[:20], labels=held_out.data.labels[:20]))
    return losses(network.eval(), config, some, end_of_training(config, train))


@pytest.mark.parametrize(
    "method, weights",
    [
        ({"name": "standard"}, {"standard": 1}),
        ({"name": "adversarial"}, {"adversarial": 1}),
        ({"name": "ibp"}, {"ibp": 1}),
        ({"name": "ibp", "kappa_start": 0, "kappa_end": 0.25}, {"standard": 0.75, "ibp": 0.25}),
        ({"name": "ibp", "kappa_end": 0.5, "kappa_schedule": "constant"}, {"standard": 0.5, "ibp": 0.5}),
        ({"name": "ibp", "adversarial_weight": 2.0}, {"ibp": 1, "adversarial": 2}),
        ({"name": "crown_ibp", "kappa_start": 0}, {"ibp": 1}),
        ({"name": "adv_ibp"}, {"adversarial": 1, "ibp": 1}),
        ({"name": "adv_crown_ibp"}, {"adversarial": 1, "ibp": 1}),
    ],
)
def test_the_loss_of_any_method_has_its_weights_at_the_end_of_training(method, weights):
    found = losses_of_a_new_network(method)
    expected = sum(weight * found[name] for name, weight in weights.items())
    assert found["own"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_method_has_a_loss_of_training(name):
    assert math.isfinite(losses_of_a_new_network({"name": name})["own"])


def test_crown_ibp_kept_to_the_end_is_tighter_than_ibp():
    found = losses_of_a_new_network({"name": "crown_ibp", "beta_end": 1.0})
    assert found["adversarial"] < found["own"] < found["ibp"]
