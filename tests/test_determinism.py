"""Same seed, same machine: the same bits. Another seed: others. Seed 0 is a seed like any other."""

from __future__ import annotations

import json
import random
import shlex

import numpy as np
import pytest
import torch
import yaml

from expressive_losses import checkpoint
from expressive_losses.cli import train_main, verify_main

QUICK = (
    "--quiet --device cpu --epochs 2 --set model.width=4 --set model.hidden=16 --set training.batch_size=256 "
    "--set test_attack.steps=2"
)
OWN = """
import random

import numpy as np
import torch
from torch import nn


def make(classes):
    \"\"\"Weights out of all three generators.\"\"\"
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, classes))
    with torch.no_grad():
        net[1].bias.fill_(random.random())
        net[3].bias.copy_(torch.from_numpy(np.random.rand(classes)))
    return net
"""


def trained(out, line: str = "") -> dict[str, torch.Tensor]:
    """Train; return the weights. The global generators are elsewhere at each call, as in different processes."""
    assert train_main(shlex.split(f"{QUICK} {line} --out {out}")) == 0
    return checkpoint.read(out / "model.pt")["weights"]


def same(ours, theirs) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def disturb() -> None:
    random.seed()
    np.random.seed()
    torch.seed()


@pytest.mark.parametrize("method", ["mtl_ibp", "sabr", "adv_ibp"])
def test_training_twice_gives_the_same_bits(tmp_path, method):
    attack = "'{name: pgd, steps: 2}'"
    line = f"--method {method} --set attack={attack} --set data.name=digits --set data.flip=true"
    line += " --set data.crop_padding=1"
    first = trained(tmp_path / "first", line)
    disturb()
    second = trained(tmp_path / "second", line)
    assert same(first, second)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("first", "second")]
    assert [json.loads(a)["train"] for a in metrics[0]] == [json.loads(b)["train"] for b in metrics[1]]


def test_a_module_may_draw_from_python_numpy_and_torch(tmp_path, monkeypatch):
    (tmp_path / "own_random_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    line = "--quiet --device cpu --epochs 1 --model own_random_net:make --set test_attack.steps=1 --out {}"
    weights = []
    for name in ("first", "second"):
        disturb()
        assert train_main(shlex.split(line.format(tmp_path / name))) == 0
        weights.append(checkpoint.read(tmp_path / name / "model.pt")["weights"])
    assert same(*weights)


def test_seed_0_is_seed_0_and_not_the_default(tmp_path):
    zero, again, default = (trained(tmp_path / name, line) for name, line in
                            (("zero", "--seed 0"), ("again", "--seed 0"), ("default", "")))  # fmt: skip
    assert same(zero, again)
    assert not same(zero, default)
    assert yaml.safe_load((tmp_path / "zero" / "config.yaml").read_text())["training"]["seed"] == 0
    assert json.loads((tmp_path / "zero" / "summary.json").read_text())["seed"] == 0


def test_deterministic_changes_no_bit_on_a_cpu_and_leaves_torch_as_it_was(tmp_path):
    plain, strict = trained(tmp_path / "plain"), trained(tmp_path / "strict", "--deterministic")
    assert same(plain, strict)
    assert not torch.are_deterministic_algorithms_enabled()


def test_verification_twice_gives_the_same_ledger(tmp_path):
    trained(tmp_path / "run")
    line = f"--model {tmp_path / 'run'} --device cpu --quiet --bound ibp --eps 0.2 --first 30 --seed 0 --out {{}}"
    rows = []
    for name in ("first", "second"):
        disturb()
        assert verify_main(shlex.split(line.format(tmp_path / name))) == 0
        lines = (tmp_path / name / "ledger.jsonl").read_text().splitlines()[1:]
        rows.append([{key: value for key, value in json.loads(one).items() if key != "seconds"} for one in lines])
        witnesses = sorted((tmp_path / name / "witnesses").glob("*"))
        rows[-1] += [path.read_bytes() for path in witnesses]
    assert rows[0] == rows[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_training_on_a_gpu(tmp_path):
    line = f"{QUICK.replace('--device cpu', '--device cuda')} --deterministic --out {{}}"
    weights = []
    for name in ("first", "second"):
        assert train_main(shlex.split(line.format(tmp_path / name))) == 0
        weights.append(checkpoint.read(tmp_path / name / "model.pt")["weights"])
    assert same(*weights)
