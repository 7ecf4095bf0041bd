"""Training end to end on the digits: resume, kill, divergence, determinism, BatchNorm policies."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from expressive_losses import checkpoint, experiment
from expressive_losses.bounds import BoundedNetwork, record_statistics, refresh_population_statistics
from expressive_losses.cli import train_main
from expressive_losses.config import load, parse_assignment
from expressive_losses.data.batches import Batches
from expressive_losses.errors import UserError
from expressive_losses.registry import ATTACKS, LOSSES, MODELS
from expressive_losses.step import Radii, evaluate_batch

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def config(*assignments: str):
    """A small, quick experiment on the digits."""
    quick = (
        "training.epochs=3",
        "model.width=4",
        "model.hidden=16",
        "training.batch_size=256",
        "training.evaluate_every=3",
    )
    return load(None, [parse_assignment(text) for text in (*quick, *assignments)])


def train(out, *assignments: str, resume: bool = False):
    return experiment.train(config(*assignments), out, CPU, resume=resume, quiet=True)


def weights(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / "model.pt")["weights"]


def assert_same(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_run_leaves_everything_behind(tmp_path):
    summary = train(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    expected = "config.yaml environment.json metrics.jsonl checkpoint.pt model.pt summary.json curves.png"
    assert set(expected.split()) <= files
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert 0 <= summary["ibp"] <= summary["adversarial"] <= summary["natural"] <= 100
    assert summary["eps"] == "0.1"
    assert load(tmp_path / "config.yaml") == config()
    assert "torch" in json.loads((tmp_path / "environment.json").read_text())


@pytest.mark.parametrize("method", [*LOSSES.names(), "{name: crown_ibp, fused: true}"])
def test_every_method_trains_and_its_run_repeats_bit_for_bit(tmp_path, method):
    """Property of all plug-ins: finite, deterministic, and a checkpoint from which the network is rebuilt."""
    first = train(tmp_path / "a", f"method={method}", "training.epochs=2")
    second = train(tmp_path / "b", f"method={method}", "training.epochs=2")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first["natural"] == second["natural"]
    network = checkpoint.network_of(checkpoint.read(tmp_path / "a" / "model.pt"))
    assert torch.isfinite(network(torch.rand(2, *network.shape))).all()


def test_seeds_differ_and_zero_is_a_seed(tmp_path):
    for seed in (0, 1):
        train(tmp_path / str(seed), f"training.seed={seed}", "training.epochs=1")
    first, second = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert checkpoint.read(tmp_path / "0" / "model.pt")["config"]["training"]["seed"] == 0


@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_stopped_at_any_step_and_resumed_is_bit_identical(tmp_path, train_and_stop, stop_after):
    """6 steps an epoch: within the first epoch, just after an epoch, at the end of the second."""
    train(tmp_path / "whole")
    train_and_stop(config(), tmp_path / "part", stop_after)
    train(tmp_path / "part", resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))
    ours, theirs = ((tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("part", "whole"))
    strip = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in ours]
    assert strip == [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in theirs]


def command(out, *more: str) -> list[str]:
    sets = [
        f"--set={text}" for text in ("training.epochs=6", "model.width=4", "model.hidden=16", "training.batch_size=128")
    ]
    return [sys.executable, str(ROOT / "train.py"), "--quiet", "--device=cpu", f"--out={out}", *sets, *more]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.2, 0.7, 1.1])
def test_killed_process_resumes_bit_identical(tmp_path, delay):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment)
    process = subprocess.Popen(command(tmp_path / "part"), env=environment)
    while not (tmp_path / "part" / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(tmp_path / "part", "--resume"), check=True, env=environment)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))


def test_the_folder_alone_is_enough_to_resume(tmp_path, train_and_stop, capsys):
    """It goes on with what the run was started with, and not with other options."""
    train(tmp_path / "whole", "method=mtl_ibp", "training.seed=3")
    train_and_stop(config("method=mtl_ibp", "training.seed=3"), tmp_path / "part", 7)
    line = ["--out", str(tmp_path / "part"), "--resume", "--quiet", "--device", "cpu"]
    assert train_main([*line, "--seed", "4"]) == 2
    assert "another config" in capsys.readouterr().err
    assert train_main(line) == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))


def test_a_folder_without_a_run_is_nothing_to_resume(tmp_path, capsys):
    """A typo in --out must not train the default network there; with a config a run may start."""
    line = ["--out", str(tmp_path / "typo"), "--resume", "--quiet", "--device", "cpu"]
    assert train_main(line) == 2
    assert "no run to resume here" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
    assert train_main([*line, "--epochs", "1", "--set", "model.width=4", "--set", "training.batch_size=512"]) == 0


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    train(tmp_path)
    before = weights(tmp_path)
    train(tmp_path, resume=True)
    assert_same(before, weights(tmp_path))


def test_resume_without_a_run_starts_one(tmp_path):
    assert train(tmp_path, resume=True)["epochs"] == 3


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        train(tmp_path)


def test_resume_from_before_a_key_of_the_config_existed(tmp_path):
    """It had the value that is the default now."""
    train(tmp_path)
    payload = checkpoint.read(tmp_path / "checkpoint.pt")
    del payload["config"]["training"]["precision"]
    checkpoint.save(tmp_path / "checkpoint.pt", payload)
    assert train(tmp_path, resume=True)["epochs"] == 3


@pytest.mark.parametrize(
    ("section", "field", "assignments"),
    [
        ("method", "kappa_schedule", ("method=ibp",)),
        ("lr_schedule", "unit", ("lr_schedule={name: multistep, milestones: [1, 2], gamma: 0.3, unit: epochs}",)),
        ("optimizer", "momentum", ("optimizer={name: sgd, lr: 0.01}",)),
    ],
)
def test_resume_from_before_a_field_of_a_plug_in_existed(tmp_path, section, field, assignments):
    """The same, where another plug-in than that of an empty config has the field."""
    train(tmp_path, *assignments)
    payload = checkpoint.read(tmp_path / "checkpoint.pt")
    del payload["config"][section][field]
    checkpoint.save(tmp_path / "checkpoint.pt", payload)
    assert train(tmp_path, *assignments, resume=True)["epochs"] == 3
    payload["config"][section]["gone"] = 1
    checkpoint.save(tmp_path / "checkpoint.pt", payload)
    with pytest.raises(UserError, match=rf"another config \({section} differ\)"):
        train(tmp_path, *assignments, resume=True)


def test_a_field_that_an_older_run_lacks_must_have_its_default(tmp_path):
    train(tmp_path, "optimizer={name: sgd, lr: 0.01, momentum: 0.5}")
    payload = checkpoint.read(tmp_path / "checkpoint.pt")
    del payload["config"]["optimizer"]["momentum"]
    checkpoint.save(tmp_path / "checkpoint.pt", payload)
    with pytest.raises(UserError, match=r"another config \(optimizer differ\)"):
        train(tmp_path, "optimizer={name: sgd, lr: 0.01, momentum: 0.5}", resume=True)


@pytest.mark.parametrize(("need", "instead"), [("advv", "did you mean 'adv'"), ("bound", "known: clean, adv")])
def test_a_loss_that_needs_what_there_is_not_is_refused_before_anything_is_written(tmp_path, need, instead):
    class Mistaken(LOSSES["adversarial"]):
        needs = (need,)

    settings = config().model_copy(update={"method": Mistaken()})
    with pytest.raises(UserError, match=f"method 'adversarial': needs '{need}'; {instead}"):
        experiment.train(settings, tmp_path / "run", CPU, quiet=True)
    assert not (tmp_path / "run").exists()


def test_resume_with_the_same_radius_in_other_words(tmp_path):
    train(tmp_path, "eps.target=.05")
    assert train(tmp_path, "eps.target=0.05", resume=True)["epochs"] == 3
    with pytest.raises(UserError, match=r"another config \(eps differ\)"):
        train(tmp_path, "eps.target=0.06", resume=True)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ({"verified_loss": torch.tensor(1.0)}, "got 'verified_loss'"),
        ({"loss": torch.ones(16)}, r"got 'loss' of shape \(16,\)"),
        ({"loss": 1.0}, "got 'loss'"),
        (torch.tensor(1.0), "got Tensor"),
    ],
    ids=str,
)
def test_a_loss_that_does_not_say_what_is_minimised_is_told_so(returned, got):
    class Mistaken(LOSSES["adversarial"]):
        def __call__(self, batch):
            return returned

    network, x, labels = batch()
    with pytest.raises(UserError, match=f"loss 'adversarial': expected a dict of scalars with 'loss', .*{got}"):
        evaluate_batch(network, Mistaken(), ATTACKS.build("none"), x, labels, Radii(0.1, 0.1, 0.5), config().training)


def test_resume_with_another_config_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match=r"another config \(optimizer differ\)"):
        train(tmp_path, "optimizer.lr=1e-4", resume=True)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    train(tmp_path / "whole")
    train(tmp_path / "part")
    path = tmp_path / "part" / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":  # in a tensor: some bytes between them are padding
        with zipfile.ZipFile(path) as archive:
            largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        content[content.find(largest) + len(largest) // 2] ^= 0xFF
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    experiment.train(config(), tmp_path / "part", CPU, resume=True)
    assert "continuing from checkpoint.previous.pt" in capsys.readouterr().out
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"diverged in epoch \d.*checkpoint.*optimizer.lr"):
        train(tmp_path, "optimizer={name: sgd, lr: 1e30}", "training.clip_norm=null", "training.epochs=4")
    if (tmp_path / "checkpoint.pt").exists():
        assert all(torch.isfinite(w).all() for w in checkpoint.read(tmp_path / "checkpoint.pt")["weights"].values())


def test_divergence_in_the_first_epoch_names_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="diverged in epoch 1 .*; there was no checkpoint yet"):
        train(tmp_path, "optimizer={name: sgd, lr: 1e30}", "training.clip_norm=null")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_second_process_is_refused(tmp_path):
    from expressive_losses.run import RunDirectory

    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        train(tmp_path)
    run.close()
    train(tmp_path)


def batch(seed: int = 0):
    torch.manual_seed(seed)
    network = BoundedNetwork(
        MODELS.build({"name": "cnn_tiny", "width": 4, "hidden": 8}).build((1, 8, 8), 4), (1, 8, 8), 4
    )
    return network, torch.rand(16, 1, 8, 8), torch.randint(4, (16,))


def step_terms(policy: str, method: str = "mtl_ibp", radii: Radii | None = None):
    network, x, labels = batch()
    training = config(f"training.bn_statistics={policy}", "training.l1=1e-6").training
    attack = ATTACKS.build({"name": "pgd", "steps": 1, "step_size": 10.0})
    generator = torch.Generator().manual_seed(5)
    radii = radii or Radii(0.1, 0.1, 0.5)
    terms = evaluate_batch(network, LOSSES.build(method), attack, x, labels, radii, training, generator)
    return network, x, labels, terms


def test_policies_differ_and_leave_train_mode_and_running_statistics():
    losses = {}
    for policy in ("adversarial", "clean", "clean_frozen"):
        network, *_, terms = step_terms(policy)
        losses[policy] = float(terms["loss"].detach())
        assert network.training
        assert not torch.equal(network.model[1].running_mean, torch.zeros(4))
        terms["total"].backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert len(set(losses.values())) == 3


def test_clean_policy_bounds_with_the_clean_batch():
    """IBP term of MTL-IBP = IBP loss under the clean batch's statistics, by hand."""
    from expressive_losses.losses.base import verified_cross_entropy
    from expressive_losses.types import Box

    network, x, labels, terms = step_terms("clean")
    with record_statistics(network) as statistics:
        network(x)
    bounds = network.bounds(Box.around(x, 0.1), labels, "ibp", statistics)
    torch.testing.assert_close(terms["ibp_loss"], verified_cross_entropy(bounds.margins))


def test_frozen_policy_updates_running_statistics_once_and_the_others_twice():
    counts = {}
    for policy in ("adversarial", "clean", "clean_frozen"):
        network, *_ = step_terms(policy)
        counts[policy] = int(network.model[1].num_batches_tracked)
    assert counts == {"adversarial": 2, "clean": 2, "clean_frozen": 1}


def test_warmup_is_clean_cross_entropy_with_the_regulariser_at_the_smallest_radius():
    network, x, labels, terms = step_terms("adversarial", radii=Radii(0.0, 0.0, 0.0))
    logits = network.train()(x)
    torch.testing.assert_close(terms["loss"], torch.nn.functional.cross_entropy(logits, labels))
    assert {"shi", "l1", "total"} <= set(terms)
    assert "adversarial" not in terms


def test_no_regulariser_after_the_ramp_nor_without_bounds():
    assert "shi" not in step_terms("adversarial", radii=Radii(0.1, 0.1, 1.0))[-1]
    assert "shi" not in step_terms("adversarial", method="adversarial")[-1]


def test_the_three_radii(tmp_path):
    """Training bounds target * multiplier, attacks that * factor, evaluation the target."""
    from expressive_losses.run import RunDirectory
    from expressive_losses.trainer import Trainer

    settings = config("eps.train_multiplier=2", "eps.attack_factor=1.5", "eps.schedule={name: linear, length: 2}")
    data, held_out, _ = experiment.load_data(settings, None)
    network = experiment.build_network(settings, data)
    run = RunDirectory(tmp_path)
    trainer = Trainer(settings, network, Batches(data), Batches(held_out), run, quiet=True)
    run.close()
    half, full = trainer.radii(trainer.steps_per_epoch), trainer.radii(2 * trainer.steps_per_epoch)
    assert (half.bounded, half.attacked, half.fraction) == pytest.approx((0.1, 0.15, 0.5))
    assert (full.bounded, full.attacked, full.fraction) == pytest.approx((0.2, 0.3, 1.0))
    assert float(settings.eps.target) == 0.1


def test_population_refresh_is_the_average_over_batches():
    network, x, _ = batch()
    batches = [x[:8], x[8:]]
    refresh_population_statistics(network, batches)
    first_layer = network.model[0](x)
    torch.testing.assert_close(network.model[1].running_mean, first_layer.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert network.model[1].momentum == 0.1


def test_validation_split_is_held_out_and_named(tmp_path):
    summary = train(tmp_path, "validation=0.2", "training.epochs=1")
    assert summary["split"] == "validation"
    assert summary["images"] == 287


@pytest.mark.parametrize(("policy", "batches"), [("adversarial", 2), ("clean", 1)])
def test_refresh_covers_the_batches_that_bounds_are_trained_with(tmp_path, policy, batches):
    """Clean batches, and under the policy "adversarial" an attacked one after each."""
    from expressive_losses.run import RunDirectory
    from expressive_losses.trainer import Trainer

    settings = config(f"training.bn_statistics={policy}", "training.bn_refresh=true", "eps.schedule=constant")
    data, held_out, _ = experiment.load_data(settings, None)
    network = experiment.build_network(settings, data)
    run = RunDirectory(tmp_path)
    trainer = Trainer(settings, network, Batches(data), Batches(held_out), run, quiet=True)
    run.close()
    trainer.step = 3
    seen = list(trainer._population(trainer.radii(2).attacked))
    clean = list(Batches(data).in_order(settings.training.batch_size))
    assert len(seen) == batches * len(clean)
    for number, (x, _) in enumerate(clean):
        assert torch.equal(seen[batches * number], x)
        if batches == 2:
            moved = (seen[batches * number + 1] - x).abs()
            assert 0.05 < float(moved.max()) <= trainer.radii(2).attacked + 1e-6
