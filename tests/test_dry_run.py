"""train.py --dry-run and the list of configs."""

import pytest

from expressive_losses.cli import train_main
from expressive_losses.cli.train import CONFIGS, config_listing

SMALL = ["--set=model.width=2", "--set=model.hidden=4", "--set=training.epochs=12", "--device=cpu"]


@pytest.mark.parametrize("method", ["mtl_ibp", "adv_crown_ibp", "standard"])
def test_dry_run_says_what_and_how_much_and_leaves_nothing(method, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_main(["--dry-run", f"--method={method}", "--set=eps.schedule.warmup=0.2", *SMALL]) == 0
    out = capsys.readouterr().out
    # conv 1 -> 2 -> 4 channels of 3x3 with stride 2, BatchNorm twice, 64 -> 4, BatchNorm, 4 -> 10
    convolutions, norms, linear = (9 * 1 * 2 + 2) + (9 * 2 * 4 + 4), 2 * (2 + 4 + 4), (64 * 4 + 4) + (4 * 10 + 10)
    assert f"parameters     {convolutions + norms + linear:,}" in out
    assert f"name: {method}" in out
    for phase in ("warm-up", "ramp", "after it", "all in all"):
        assert phase in out, out
    assert "GFLOP" in out
    assert not any(tmp_path.iterdir())


def test_a_tighter_bound_costs_more_operations(capsys):
    flops = {}
    for bound in ("ibp", "crown_ibp"):
        assert train_main(["--dry-run", f"--set=method={{name: mtl_ibp, bound: {bound}}}", *SMALL]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("after it"))
        flops[bound] = float(line.split()[2])
    assert flops["crown_ibp"] > 1.2 * flops["ibp"]


def test_every_config_is_listed_with_method_data_and_published_figures():
    lines = config_listing()[1:]
    assert len(lines) == len([path for path in CONFIGS.rglob("*.yaml") if not path.stem.startswith("base")])
    line = next(line for line in lines if "configs/mnist_0.3/mtl_ibp.yaml" in line)
    assert "mtl_ibp on mnist with cnn7, eps 0.3; published: 98.8 natural, 93.62 verified" in line
