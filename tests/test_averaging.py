"""Averages of the weights, and batches worked off in parts."""

import pytest
import torch
from torch import nn

from expressive_losses import checkpoint, experiment
from expressive_losses.averaging import WeightAverage
from expressive_losses.bounds import refresh_population_statistics
from expressive_losses.config import AveragingConfig, load, parse_assignment
from expressive_losses.data.batches import Batches
from expressive_losses.errors import UserError
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer

CPU = torch.device("cpu")


def config(*assignments: str):
    quick = (
        "training.epochs=4", "model.width=4", "model.hidden=16", "training.batch_size=256", "training.evaluate_every=2",
    )  # fmt: skip
    return load(None, [parse_assignment(text) for text in (*quick, *assignments)])


def averaged(values, **fields) -> float:
    """Feed the values of a single weight as the weights after each of the steps, 2 steps an epoch."""
    layer = nn.Linear(1, 1, bias=False)
    average = WeightAverage(AveragingConfig(**fields), layer)
    for step, value in enumerate(values, 1):
        nn.init.constant_(layer.weight, value)
        average.update(step / 2, step % 2 == 0)
    average.apply(lambda: None)
    return layer.weight.item()


def test_averages_by_hand():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert averaged(values) == 6  # none
    assert averaged(values, kind="swa") == pytest.approx((2 + 4 + 6) / 3)
    assert averaged(values, kind="swa", start=2) == pytest.approx((4 + 6) / 2)
    assert averaged(values, kind="swa", start=9) == 6  # not begun
    assert averaged(values[:3], kind="ema", decay=0.5) == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 3)
    assert averaged(values, kind="ema", decay=0.5, start=2.5) == pytest.approx(0.5 * 5 + 0.5 * 6)


def test_evaluation_leaves_the_weights_and_statistics_alone():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = WeightAverage(AveragingConfig(kind="ema"), network)
    average.update(1, True)
    with torch.no_grad():
        network[0].weight.add_(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with average.applied(lambda: refresh_population_statistics(network, [torch.rand(4, 1, 5, 5)])):
        assert not torch.equal(network[0].weight, before["0.weight"])
        assert not torch.equal(network[1].running_mean, before["1.running_mean"])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_average_is_evaluated_saved_and_resumed(tmp_path, train_and_stop, kind):
    settings = config(f"training.average={{kind: {kind}, start: 1, decay: 0.9}}")
    whole = experiment.train(settings, tmp_path / "whole", CPU, quiet=True)
    train_and_stop(settings, tmp_path / "part", 15)
    part = experiment.train(settings, tmp_path / "part", CPU, resume=True, quiet=True)
    assert part["natural"] == whole["natural"]
    saved = {name: checkpoint.read(tmp_path / name / "model.pt")["weights"] for name in ("whole", "part")}
    assert all(torch.equal(saved["part"][name], value) for name, value in saved["whole"].items())
    raw = checkpoint.read(tmp_path / "whole" / "checkpoint.pt")
    assert not torch.equal(raw["weights"]["0.weight"], saved["whole"]["0.weight"])
    assert torch.equal(raw["training"]["average"]["weights"]["model.0.weight"], saved["whole"]["0.weight"])


def gradients(tmp_path, *assignments: str, eps: float = 0.05):
    """The gradient of the first batch, with one radius for bounds and attack."""
    from expressive_losses.step import Radii

    settings = config("training.bn_statistics=clean_frozen", "training.shi.weight=0", "attack=none", *assignments)
    torch.manual_seed(0)
    data, held_out, _ = experiment.load_data(settings, None)
    run = RunDirectory(tmp_path)
    network = experiment.build_network(settings, data)
    trainer = Trainer(settings, network, Batches(data), Batches(held_out), run, quiet=True)
    run.close()
    terms = trainer.train_step(torch.arange(250), Radii(eps, eps, 0.5))
    return terms, [parameter.grad for parameter in network.parameters()], dict(network.named_buffers())


@pytest.mark.parametrize("method", ["mtl_ibp", "cc_ibp", "sabr", "{name: exp_ibp, average: sample}", "ibp"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, method):
    """250 images in parts of 84, 84 and 82, BatchNorm with the statistics of all 250."""
    whole = gradients(tmp_path, f"method={method}")
    parts = gradients(tmp_path, f"method={method}", "training.accumulate=3")
    torch.testing.assert_close(parts[0]["total"], whole[0]["total"], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max() + 1))
    for name, value in whole[2].items():
        torch.testing.assert_close(parts[2][name], value)


def test_without_batch_norm_any_policy_will_do(tmp_path):
    plain = ("model={name: mlp, hidden: [8]}", "training.bn_statistics=adversarial")
    whole = gradients(tmp_path, *plain)
    parts = gradients(tmp_path, *plain, "training.accumulate=3")
    for ours, theirs in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="with BatchNorm it needs training.bn_statistics=clean_frozen"):
        experiment.prepare(config("training.accumulate=2"), CPU)


def test_the_warmup_in_parts(tmp_path):
    terms, grads, _ = gradients(tmp_path, "training.accumulate=2", eps=0.0)
    assert torch.isfinite(terms["total"])
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["training.accumulate=2", "training.bn_statistics=clean_frozen", "method=adv_ibp"],
            "the loss of 'adv_ibp' is no mean over the batch",
        ),
        (["training.average={kind: swa, start: 4}"], "average: start 4 is not before the end"),
        (["training.average.kind=sma"], "training.average.kind"),
        (["method={name: sabr, relu_shrink: 0.8, bound: crown_ibp}"], "relu_shrink: only with bound 'ibp'"),
    ],
)
def test_settings_that_cannot_be_meant(assignments, message):
    with pytest.raises(UserError, match=message):
        config(*assignments)
