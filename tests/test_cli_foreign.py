"""Networks that were not trained here, from the command line: architectures with weights, and ONNX files."""

import json
import shlex

import pytest
import torch
from test_cli import fails
from torch import nn

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.cli import train_main, verify_main
from expressive_losses.cli.foreign import without_prefix

TINY = "--model cnn_tiny --model-set width=4 --model-set hidden=16 --dataset digits"
QUICK = "--bound ibp --first 20 --device cpu --quiet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory of a small network."""
    out = tmp_path_factory.mktemp("run")
    line = "--method ibp --quiet --epochs 1 --set model.width=4 --set model.hidden=16 --set training.batch_size=256"
    assert train_main(shlex.split(f"{line} --device cpu --out {out}")) == 0
    return out


@pytest.fixture(scope="module")
def files(trained):
    """The same weights as others would publish them, and some that do not fit."""
    payload = checkpoint.read(trained / "model.pt")
    weights = payload["weights"]
    wrapped = {f"module.model.{name}": value for name, value in weights.items()}
    contents = {
        "plain": weights,
        "nested": {"epoch": 3, "state_dict": wrapped},
        "missing": dict(list(weights.items())[1:]),
        "list": [1, 2],
        "nan": {name: value * torch.nan if value.is_floating_point() else value for name, value in weights.items()},
        "code": {"weight": nn.Linear(1, 1)},
    }
    found = {name: trained / f"weights-{name}.pt" for name in (*contents, "old", "text")}
    for name, content in contents.items():
        torch.save(content, found[name])
    torch.save(weights, found["old"], _use_new_zipfile_serialization=False)  # torch before 1.6
    found["text"].write_text("hello")
    return found


def rows_of(out):
    lines = (out / "ledger.jsonl").read_text().splitlines()[1:]
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", ["plain", "nested", "old"])
def test_a_state_dict_with_its_architecture_gives_the_rows_of_the_checkpoint(name, trained, files, tmp_path):
    payload = checkpoint.read(trained / "model.pt")
    line = f"{QUICK} --model {trained} --eps 0.1 --out {tmp_path / 'ours'}"
    assert verify_main(shlex.split(line)) == 0
    normalise = " ".join(f"--{key} {','.join(map(str, payload[key]))}" for key in ("mean", "std"))
    line = f"{QUICK} {TINY} --weights {files[name]} {normalise} --eps 0.1 --out {tmp_path / 'theirs'}"
    assert verify_main(shlex.split(line)) == 0
    assert rows_of(tmp_path / "theirs") == rows_of(tmp_path / "ours")
    line = f"check {tmp_path / 'theirs'} {TINY} --weights {files[name]} {normalise}"
    assert verify_main(shlex.split(line)) == 0


def test_normalisation_is_part_of_what_is_verified(files, tmp_path, capsys):
    line = f"{QUICK} {TINY} --weights {files['plain']} --eps 0.1 --out {tmp_path}"
    assert verify_main(shlex.split(line)) == 0
    assert "answers another question" in fails(verify_main, f"{line} --mean 0.5 --std 2 --resume", capsys)


def test_a_factory_needs_no_trust_where_the_user_typed_it(tmp_path, monkeypatch):
    (tmp_path / "my_factory.py").write_text(
        "from torch import nn\n\n\ndef make(classes, hidden=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    line = f"{QUICK} --model my_factory:make --model-set hidden=12 --weights {tmp_path / 'weights.pt'}"
    assert verify_main(shlex.split(f"{line} --shape 1,8,8 --classes 10 --dataset digits --eps 1/255")) == 0
    ledger = tmp_path / "verify-ibp-eps1_255-digits-test" / "ledger.jsonl"
    assert len(ledger.read_text().splitlines()) == 21


def test_onnx_gives_the_rows_of_the_network_it_was_made_from(trained, tmp_path):
    pytest.importorskip("onnx", reason="networks from ONNX need the package onnx")
    line = f"export --model {trained} --first 1 --out {tmp_path / 'onnx'}"
    assert verify_main(shlex.split(line)) == 0
    common = f"{QUICK} --dataset digits --eps 0.05"
    onnx = tmp_path / "onnx" / "network.onnx"
    for name, model in (("theirs", onnx), ("ours", trained)):
        assert verify_main(shlex.split(f"{common} --model {model} --out {tmp_path / name}")) == 0
    for theirs, ours in zip(rows_of(tmp_path / "theirs"), rows_of(tmp_path / "ours"), strict=True):
        assert theirs["status"] == ours["status"]
        assert theirs["margin"] == pytest.approx(ours["margin"], abs=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{TINY} --eps 0.1", "--weights is missing: 'cnn_tiny' is an architecture"),
        ("--model cnn_tiny --weights {plain} --eps 0.1", "--dataset is missing"),
        (f"{TINY} --weights {{plain}}", "--eps is missing"),
        ("--model network.onnx --eps 0.1", "--dataset is missing"),
        ("--model nowhere.onnx --eps 0.1 --dataset digits", "nowhere.onnx"),
        ("--model network.onnx --weights {plain} --dataset digits", "leave it out"),
        (f"{TINY} --eps 0.1 --weights {{missing}}", "do not fit the model"),
        ("--model cnn_tiny --dataset digits --eps 0.1 --weights {plain}", "do not fit the model"),
        (f"{TINY} --eps 0.1 --weights {{list}}", "expected a state_dict"),
        (f"{TINY} --eps 0.1 --weights {{nan}}", "not finite"),
        (f"{TINY} --eps 0.1 --weights {{code}}", "could run code"),
        (f"{TINY} --eps 0.1 --weights {{text}}", "weights-text.pt"),
        (f"{TINY} --eps 0.1 --weights nowhere.pt", "cannot read the weights"),
        (f"{TINY} --eps 0.1 --weights {{ours}}", "is a checkpoint of expressive_losses"),
        (f"{TINY} --eps 0.1 --weights {{plain}} --mean 0.1,0.2", "--mean: expected 1"),
        (f"{TINY} --eps 0.1 --weights {{plain}} --std 0", "std must be positive"),
        (f"{TINY} --eps 0.1 --weights {{plain}} --shape 28,28", "expected C,H,W"),
        (f"{TINY} --model-set wdth=3 --eps 0.1 --weights {{plain}}", "did you mean 'width'"),
        ("--model cnn_tny --weights {plain} --dataset digits --eps 0.1", "did you mean 'cnn_tiny'"),
        ("--model no.such:thing --weights {plain} --dataset digits --eps 0.1", "no.such"),
        ("--model {ours} --weights {plain}", "leave it out"),
        ("--model {ours} --classes 10", "leave it out"),
    ],
)
def test_mistakes(line, message, trained, files, capsys, tmp_path):
    line = line.format(ours=trained / "model.pt", **files)
    assert message in fails(verify_main, f"{line} --bound ibp --quiet --out {tmp_path / 'out'}", capsys)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_only_a_prefix_that_makes_the_names_fit_is_taken_off():
    expected = {"0.weight": torch.zeros(1), "2.weight": torch.zeros(1)}
    for prefix in ("", "module.", "_orig_mod.module."):
        weights = {prefix + name: value for name, value in expected.items()}
        assert set(without_prefix(weights, expected)) == set(expected)
    partly = {"module.0.weight": torch.zeros(1), "2.weight": torch.zeros(1)}
    assert set(without_prefix(partly, expected)) == set(partly)


def test_published_weights_fit_the_registered_architecture(golden, tmp_path):
    """The published code's cnn_small_bn is cnn_small here: the same names, and the same logits."""
    from expressive_losses.cli.foreign import Description, network_from

    published: BoundedNetwork = golden.network()
    torch.save({"state_dict": published.model.state_dict()}, tmp_path / "published.pt")
    about = Description(weights=tmp_path / "published.pt", dataset="mnist")
    network, _ = network_from("cnn_small", about)
    torch.testing.assert_close(network(golden.x), published(golden.x), rtol=0, atol=0)
