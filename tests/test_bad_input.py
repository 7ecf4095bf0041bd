"""Malformed input of every kind, through the real commands.

Each case must end with exit code 2 and one line on stderr that says what is wrong, without a traceback, and
without a file made or changed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expressive_losses import checkpoint
from expressive_losses.cli import train_main, verify_main

ROOT = Path(__file__).parent.parent
SMALL = "--device cpu --quiet --set model.width=4 --set model.hidden=16 --set training.batch_size=256 --epochs 2"

CONFIGS = {
    "broken": "a: [1",
    "list": "- 1",
    "text": "just words",
    "circle_a": "extends: circle_b.yaml",
    "circle_b": "extends: circle_a.yaml",
    "self": "extends: self.yaml",
    "orphan": "extends: nowhere.yaml",
    "extends_list": "extends: [a.yaml, b.yaml]",
    "code": "method: !!python/object/apply:os.system ['touch hacked']",
    "typo": "trainning: {epochs: 3}",
    "nested_typo": "training: {shi: {wieght: 3}}",
    "twice": "eps: {target: 0.1}\ntraining: {epochs: 3}\neps: {target: 0.3}",
    "twice_inside": "eps: {target: 0.1, target: 0.3}",
    "tabs": "training:\n\tepochs: 3",
    "null_section": "training: null",
    "list_section": "eps: [0.1]",
    "number_as_key": "1: 2",
    "unhashable_key": "[1, 2]: 3",
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")),
    "loop": "method: &m {name: *m}",
    "text_for_number": "optimizer: {lr: 5e-4x}",
    "bool_for_number": "training: {epochs: yes please}",
    "fraction_for_int": "training: {epochs: 2.5}",
    "deep": "a: " + "[" * 3000 + "]" * 3000,
}

MODULES = {
    "broken_syntax": "def make(:\n",
    "raises": "raise RuntimeError('boom\\nsecond line')\n",
    "exits": "import sys\nsys.exit(0)\n",
    "nets": """
from torch import nn
import torch

number = 3

def plain(classes, hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def nothing():
    return None

def crashes():
    raise KeyError("my bug")

def dropout():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

def needs(important):
    return plain(10)

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))

def nan():
    net = plain(10)
    with torch.no_grad():
        net[1].weight.fill_(float("nan"))
    return net

def odd():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Hardswish(), nn.Linear(8, 10))

def frozen():
    return plain(10).requires_grad_(False)

def unlearnt():
    return nn.Sequential(nn.Flatten(), nn.ReLU())

def half():
    return plain(10).half()

def tuple_():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            return self.layer(x.flatten(1)), x
    return Two()

def fails_on_call():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            return {}["missing"]
    return Fails()
""",
}


def arrays(**changes):
    """The arrays of a small data set of one's own, some of them replaced."""
    random = np.random.default_rng(0)
    good = {
        "x_train": random.integers(0, 255, (40, 1, 8, 8)).astype(np.uint8),
        "y_train": np.arange(40) % 10,
        "x_test": random.integers(0, 255, (20, 1, 8, 8)).astype(np.uint8),
        "y_test": np.arange(20) % 10,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def data_files(folder: Path) -> None:
    good = arrays()
    nan = good["x_train"].astype(np.float32)
    nan[0] = np.nan
    files = {
        "good": good,
        "no_test": arrays(x_test=None),
        "float": arrays(x_train=good["x_train"] / 255),
        "nan": arrays(x_train=nan),
        "flat": arrays(x_train=good["x_train"].reshape(40, 64)),
        "five": arrays(x_train=good["x_train"][:, None]),
        "short": arrays(y_train=good["y_train"][:30]),
        "negative": arrays(y_train=good["y_train"] - 1),
        "float_labels": arrays(y_train=good["y_train"] / 1.0),
        "one_hot": arrays(y_train=np.eye(10, dtype=int)[good["y_train"]]),
        "empty_train": arrays(x_train=good["x_train"][:0], y_train=good["y_train"][:0]),
        "empty_test": arrays(x_test=good["x_test"][:0], y_test=good["y_test"][:0]),
        "one_image": arrays(x_train=good["x_train"][:1], y_train=good["y_train"][:1]),
        "objects": arrays(x_train=np.array([print], dtype=object)),
        "other_test": arrays(x_test=good["x_test"][:, :, :6]),
        "one_class": arrays(y_train=good["y_train"] * 0, y_test=good["y_test"] * 0),
        "colour": arrays(x_train=good["x_train"].repeat(3, 1), x_test=good["x_test"].repeat(3, 1)),
    }
    for name, content in files.items():
        np.savez(folder / f"{name}.npz", **content)
    (folder / "text.npz").write_text("not an archive")
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    image_folders(folder)
    idx_files(folder)


def image_folders(folder: Path) -> None:
    for name in ("sizes", "damaged", "unknown_class", "no_images"):
        for split in ("train", "test"):
            for number in range(2):
                (folder / name / split / f"class{number}").mkdir(parents=True)
                if name != "no_images":
                    picture = Image.fromarray(np.full((8, 8), 100 * number, np.uint8))
                    picture.save(folder / name / split / f"class{number}" / "a.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "sizes" / "train" / "class1" / "b.png")
    (folder / "damaged" / "train" / "class1" / "b.png").write_bytes(b"\x89PNG rubbish")
    (folder / "unknown_class" / "test" / "class2").mkdir()


def idx_files(folder: Path) -> None:
    """MNIST files whose labels are cut short, and one whose header promises more than memory holds."""
    for name, count in (("mnist_cut", 4), ("mnist_huge", 2**31)):
        raw = folder / name / "MNIST" / "raw"
        raw.mkdir(parents=True)
        header = b"\0\0\x08\x03" + struct.pack(">III", count, 28, 28)
        (raw / "train-images-idx3-ubyte").write_bytes(header + bytes(3 * 784))
        (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes(4))


def model_files(folder: Path, run: Path) -> None:
    payload = checkpoint.read(run / "model.pt")
    weights = payload["weights"]
    first, *_ = weights
    config = payload["config"]
    variants = {
        "foreign": {"weight": torch.zeros(3)},
        "newer": {**payload, "format": 99},
        "text_format": {**payload, "format": "one"},
        "with_code": {**payload, "code": torch.nn.Linear(1, 1)},
        "nan": {**payload, "weights": {**weights, first: weights[first] * torch.nan}},
        "misfit": {**payload, "model": {"name": "cnn_tiny", "width": 5, "hidden": 16}},
        "no_weights": {key: value for key, value in payload.items() if key != "weights"},
        "no_config": {key: value for key, value in payload.items() if key != "config"},
        "no_shape": {key: value for key, value in payload.items() if key != "shape"},
        "weights_list": {**payload, "weights": [1, 2]},
        "weights_numbers": {**payload, "weights": dict.fromkeys(weights, 1.0)},
        "missing_weight": {**payload, "weights": {k: v for k, v in weights.items() if k != first}},
        "extra_weight": {**payload, "weights": {**weights, "extra.weight": torch.zeros(2)}},
        "unknown_model": {**payload, "model": {"name": "cnn_titanic"}},
        "model_text": {**payload, "model": 3},
        "other_classes": {**payload, "classes": 7},
        "classes_text": {**payload, "classes": "ten"},
        "shape_text": {**payload, "shape": "1,8,8"},
        "shape_flat": {**payload, "shape": [64]},
        "mean_text": {**payload, "mean": "zero"},
        "std_zero": {**payload, "std": [0.0]},
        "std_nan": {**payload, "std": [float("nan")]},
        "mean_nan": {**payload, "mean": [float("nan")]},
        "mean_three": {**payload, "mean": [0.1, 0.2, 0.3]},
        "config_text": {**payload, "config": "mtl_ibp"},
        "config_eps": {**payload, "config": {**config, "eps": {**config["eps"], "target": "8"}}},
        "config_typo": {**payload, "config": {**config, "trainning": {}}},
        "imports": {**payload, "model": {"name": "factory", "path": "os:system", "kwargs": {"command": "echo"}}},
        "imports_name": {**payload, "model": {"name": "os:system", "command": "touch hacked"}},
        "plugins": {**payload, "config": {**config, "plugins": ["antigravity"]}},
        "half": {**payload, "weights": {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}},
    }
    for name, content in variants.items():
        torch.save(content, folder / f"{name}.pt")
    whole = (run / "model.pt").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("hello")
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (folder / "flipped.pt").write_bytes(flipped)
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with zipfile.ZipFile(folder / "climbs.pt", "w") as archive:
        archive.writestr("../../hacked", "hello")
    torch.save(weights, folder / "state.pt")
    torch.save({name: value for name, value in weights.items() if name != first}, folder / "state_short.pt")
    torch.save([1, 2], folder / "state_list.pt")
    (folder / "rubbish.onnx").write_bytes(b"rubbish")


def ledgers(folder: Path, run: Path) -> None:
    line = f"--model {run} --bound ibp --first 10 --batch-size 5 --device cpu --quiet --out {folder / 'good'}"
    assert verify_main(shlex.split(line)) == 0
    head, *rows = (folder / "good" / "ledger.jsonl").read_text().splitlines()
    row = json.loads(rows[3])
    variants = {
        "copy": [head, *rows],
        "corrupt": [head, *rows[:3], "{rubbish", *rows[4:]],
        "binary": [head, *rows[:3], "\x00\x01", *rows[4:]],
        "doubled": [head, *rows, rows[0]],
        "headless": rows,
        "garbage_head": ["[]", *rows],
        "newer": [head.replace("ledger-1", "ledger-9"), *rows],
        "bad_status": [head, *rows[:3], json.dumps({**row, "status": "proven"}), *rows[4:]],
        "bad_index": [head, *rows[:3], json.dumps({**row, "index": -4}), *rows[4:]],
        "missing_key": [head, *rows[:3], json.dumps({k: v for k, v in row.items() if k != "margin"}), *rows[4:]],
        "other_model": [head.replace(json.loads(head)["weights_sha256"], "0" * 64), *rows],
        "other_eps": [head.replace('"eps": "0.1", "eps_value": 0.1', '"eps": "0.2", "eps_value": 0.2'), *rows],
    }
    for name, lines in variants.items():
        (folder / name).mkdir()
        (folder / name / "ledger.jsonl").write_text("\n".join(lines) + "\n")


def run_directories(folder: Path, run: Path) -> None:
    """Copies of a run that was stopped after its first epoch, each damaged in another way."""
    variants = ("both_cut", "newer", "no_training", "metrics", "training_text", "optimizer", "other_step", "wider")
    for name in variants:
        shutil.copytree(run, folder / name)
    payload = checkpoint.read(run / "checkpoint.pt")
    training = payload["training"]
    for name, content in {
        "newer": {**payload, "format": 99},
        "no_training": {key: value for key, value in payload.items() if key != "training"},
        "training_text": {**payload, "training": "all of it"},
        "optimizer": {**payload, "training": {**training, "optimizer": {"state": {}, "param_groups": []}}},
        "other_step": {**payload, "training": {**training, "step": "many"}},
        "wider": {**payload, "weights": {k: v.repeat(2, *[1] * (v.dim() - 1)) if v.dim() else v
                                         for k, v in payload["weights"].items()}},
    }.items():  # fmt: skip
        torch.save(content, folder / name / "checkpoint.pt")
        (folder / name / "checkpoint.previous.pt").unlink(missing_ok=True)
    for file in ("checkpoint.pt", "checkpoint.previous.pt"):
        whole = (run / "checkpoint.pt").read_bytes()
        (folder / "both_cut" / file).write_bytes(whole[:1000])
    (folder / "metrics" / "metrics.jsonl").write_text('{"epoch": 1}\n{rubbish\n{"epoch": 2}\n')


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a trained run and everything that is wrong with its neighbours."""
    world = tmp_path_factory.mktemp("world")
    for name in ("configs", "code", "data", "models", "ledgers", "runs"):
        (world / name).mkdir()
    for name, text in CONFIGS.items():
        (world / "configs" / f"{name}.yaml").write_text(text)
    (world / "configs" / "binary.yaml").write_bytes(bytes(range(256)))
    for name, text in MODULES.items():
        (world / "code" / f"{name}.py").write_text(text)
    (world / "file").write_text("precious")
    (world / "empty").mkdir()
    assert train_main(shlex.split(f"{SMALL} --out {world / 'run'}")) == 0
    data_files(world / "data")
    model_files(world / "models", world / "run")
    ledgers(world / "ledgers", world / "run")
    run_directories(world / "runs", world / "run")
    return world


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time of change and size; locks, which name the last process, left out."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns if path.is_file() else 0, path.stat().st_size)
        for path in folder.rglob("*")
        if path.name != ".lock" and "__pycache__" not in path.parts
    }


def complaint(main, line: str, capsys) -> str:
    """Run a command that must fail as a user's mistake; return its one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(shlex.split(line))
    printed = capsys.readouterr()
    print(printed.err)
    assert code == 2, (code, printed.err[-2000:])
    assert printed.err.startswith("error: "), printed.err[-2000:]
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed.err[-2000:]
    assert "Traceback" not in printed.err
    assert 20 < len(printed.err) < 1000, printed.err[:2000]
    assert not printed.out, printed.out
    return printed.err


def check(world, main, line, message, capsys, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("EXPRESSIVE_LOSSES_DATA", raising=False)
    shutil.rmtree(world / "fresh", ignore_errors=True)
    before = snapshot(world)
    said = complaint(main, line, capsys)
    assert message in said, said
    after = snapshot(world)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == set()


TRAIN = [
    # command line
    ("--method mtl_ipb", "did you mean 'mtl_ibp'"),
    ("--method ''", "method"),
    ("--method standard --alpha 0.2", "'standard': unknown key 'alpha'; there are none, leave it out"),
    ("--method ibp --alpha 0.2", "'alpha'"),
    ("--alpha 2", "alpha"),
    ("--alpha -0.1", "alpha"),
    ("--alpha nan", "alpha"),
    ("--alpha lots", "--alpha"),
    ("--eps 8", "did you mean 8/255"),
    ("--eps -0.1", "from 0 to 1"),
    ("--eps nan", "from 0 to 1"),
    ("--eps 300", "from 0 to 1"),
    ("--eps 1/0", "a fraction such as 8/255"),
    ("--eps eight", "a fraction such as 8/255"),
    ("--eps ''", "a fraction such as 8/255"),
    ("--dataset mnits", "did you mean 'mnist'"),
    ("--dataset mnist --data-dir nowhere", "MNIST"),
    ("--model cnn77", "did you mean 'cnn7'"),
    ("--epochs 0", "training.epochs"),
    ("--epochs -3", "training.epochs"),
    ("--epochs many", "--epochs"),
    ("--seed -1", "training.seed"),
    ("--seed 1.5", "--seed"),
    ("--seed 99999999999999999999999", "training.seed"),
    ("--device gpu9", "--device gpu9"),
    ("--device meta", "--device meta"),
    ("--device ''", "--device"),
    ("--metod ibp", "--metod"),
    ("--epoch 3", "--epoch"),
    ("stray", "stray"),
    ("--config", "--config"),
    ("--out", "--out"),
    ("--set training.epochs", "expected key=value"),
    ("--set =3", "expected key=value"),
    ("--set training..epochs=3", "expected key=value"),
    ("--set training.epochs=[1", "not valid YAML"),
    # values
    ("--set training.epochs=three", "training.epochs"),
    ("--set training.epochs=null", "training.epochs"),
    ("--set training.epohcs=3", "did you mean 'epochs'"),
    ("--set training=3", "training"),
    ("--set training.batch_size=1", "training.batch_size"),
    ("--set training.batch_size=1.5e0", "training.batch_size"),
    ("--set training.bn_statistics=clear", "training.bn_statistics"),
    ("--set training.clip_norm=-1", "training.clip_norm"),
    ("--set training.accumulate=2", "clean_frozen"),
    ("--set training.average.kind=ema --set training.average.start=100", "start"),
    ("--set optimizer.lr=abc", "lr"),
    ("--set optimizer.lr=0", "lr"),
    ("--set optimizer.lr=.inf", "lr"),
    ("--set optimizer.name=adamm", "did you mean 'adam"),
    ("--set optimizer.betas=[2,3]", "betas"),
    ("--set 'optimizer={name: sgd, nesterov: true, momentum: 0}'", "momentum"),
    ("--set 'lr_schedule={name: multistep, milestones: [90]}'", "milestone 90 is not before the end"),
    ("--set 'lr_schedule={name: multistep, milestones: [1, 0.5]}'", "ascending"),
    ("--set 'lr_schedule={name: cosine}'", "length"),
    ("--set eps.train_multiplier=20", "above 1"),
    ("--set eps.target=null", "eps.target"),
    ("--set eps.schedule.length=-1", "length"),
    ("--set eps.schedule.mid=2", "mid"),
    ("--set eps.schedule.unit=years", "unit"),
    ("--set eps.schedule.length=100 --set eps.schedule.unit=epochs", "eps.schedule: the radius reaches"),
    ("--set eps.schedule.warmup=1", "eps.schedule: the radius reaches"),
    ("--set attack.steps=0", "steps"),
    ("--set attack.name=pdg", "did you mean 'pgd'"),
    ("--set attack=[1]", "attack"),
    ("--set method=[]", "method"),
    ("--set method.name=3", "method"),
    ("--set paper=3", "paper"),
    ("--set validation=5000", "validation"),
    ("--set validation=-0.1", "validation"),
    ("--set validation=0.00001", "validation"),
    ("--set validation=1.5", "validation"),
    ("--set plugins=[no_such_module_here]", "no_such_module_here"),
    ("--set plugins=no_such_module_here", "plugins"),
    ("--set plugins=3", "plugins"),
    ("--set plugins=[broken_syntax]", "broken_syntax"),
    ("--set plugins=[raises]", "boom"),
    ("--set plugins=[exits]", "exits"),
    ("--set model.width=0", "width"),
    ("--set model.width=wide", "width"),
    ("--set data.mean=[0.1,0.2]", "mean"),
    ("--set data.std=[0.0]", "std"),
    ("--set data.std=[.nan]", "std"),
    # config files
    ("--config configs/missing.yaml", "cannot read the config"),
    ("--config configs", "cannot read the config"),
    ("--config configs/broken.yaml", "not valid YAML"),
    ("--config configs/tabs.yaml", "not valid YAML"),
    ("--config configs/binary.yaml", "not valid YAML"),
    ("--config configs/code.yaml", "not valid YAML"),
    ("--config configs/unhashable_key.yaml", "not valid YAML"),
    ("--config configs/twice.yaml", "'eps' is there twice"),
    ("--config configs/twice_inside.yaml", "'target' is there twice"),
    ("--config configs/list.yaml", "expected a mapping"),
    ("--config configs/text.yaml", "expected a mapping"),
    ("--config configs/circle_a.yaml", "circle"),
    ("--config configs/self.yaml", "circle"),
    ("--config configs/orphan.yaml", "nowhere.yaml"),
    ("--config configs/extends_list.yaml", "expected a path"),
    ("--config configs/typo.yaml", "did you mean 'training'"),
    ("--config configs/nested_typo.yaml", "did you mean 'weight'"),
    ("--config configs/null_section.yaml", "training"),
    ("--config configs/list_section.yaml", "eps"),
    ("--config configs/number_as_key.yaml", "1"),
    ("--config configs/bomb.yaml", "configs/bomb.yaml"),
    ("--config configs/loop.yaml", "configs/loop.yaml"),
    ("--config configs/deep.yaml", "configs/deep.yaml"),
    ("--config configs/text_for_number.yaml", "lr"),
    ("--config configs/bool_for_number.yaml", "epochs"),
    ("--config configs/fraction_for_int.yaml", "epochs"),
    # where it is written
    ("--out file", "file"),
    ("--out file/inside", "file"),
    ("--out /proc/nowhere", "/proc/nowhere"),
    (f"--out run {SMALL}", "add --resume"),
    ("--out run --resume --epochs 3", "another config"),
    (f"--out runs/both_cut --resume {SMALL}", "cut short"),
    (f"--out runs/newer --resume {SMALL}", "newer"),
    (f"--out runs/no_training --resume {SMALL}", "not a state of training"),
    (f"--out runs/training_text --resume {SMALL}", "not a state of training"),
    (f"--out runs/optimizer --resume {SMALL}", "not a state of training"),
    (f"--out runs/other_step --resume {SMALL}", "not a state of training"),
    (f"--out runs/wider --resume {SMALL}", "do not fit"),
    (f"--out runs/metrics --resume {SMALL}", "line 2"),
    # data
    ("--dataset tensors", "data.path"),
    *(
        (f"--dataset tensors --data-dir data --set data.path={name}.npz", message)
        for name, message in {
            "nowhere": "nowhere.npz",
            "no_test": "x_test",
            "float": "uint8",
            "nan": "uint8",
            "flat": "(N, C, H, W)",
            "five": "(N, C, H, W)",
            "short": "30 labels",
            "negative": "labels must be in",
            "float_labels": "integers",
            "one_hot": "integers",
            "empty_train": "no image",
            "empty_test": "no image",
            "one_image": "training images",
            "objects": "objects.npz",
            "other_test": "(1, 6, 8)",
            "one_class": "classes",
            "text": "text.npz",
            "cut": "cut.npz",
        }.items()
    ),
    ("--dataset tensors --data-dir data --set data.path=good.npz --set data.num_classes=5", "labels must be in 0..4"),
    ("--dataset tensors --data-dir data --set data.path=good.npz --set data.scale=3", "scale"),
    ("--dataset tensors --data-dir data --set data.path=colour.npz --set data.mean=[0.1,0.2]", "mean"),
    ("--dataset imagefolder --data-dir data --set data.path=nowhere", "nowhere"),
    ("--dataset imagefolder --data-dir data --set data.path=sizes", "9x9"),
    ("--dataset imagefolder --data-dir data --set data.path=damaged", "damaged"),
    ("--dataset imagefolder --data-dir data --set data.path=unknown_class", "class2"),
    ("--dataset imagefolder --data-dir data --set data.path=no_images", "*.png"),
    ("--dataset mnist --data-dir data/mnist_cut", "damaged"),
    ("--dataset mnist --data-dir data/mnist_huge", "damaged"),
    ("--dataset nets:number", "nets:number"),
    # models of one's own
    ("--model no.such:thing", "no.such"),
    ("--model nets:", "nets:"),
    ("--model :plain", ":plain"),
    ("--model nets:absent", "absent"),
    ("--model broken_syntax:make", "broken_syntax"),
    ("--model raises:make", "boom"),
    ("--model exits:make", "exits"),
    ("--model nets:number", "expected a function"),
    ("--model nets:nothing", "torch.nn.Module"),
    ("--model nets:crashes", "my bug"),
    ("--model nets:narrow", "nn.Linear(..., 10)"),
    ("--model nets:dropout", "dropout"),
    ("--model nets:needs", "important"),
    ("--model nets:plain --set model.depth=3", "depth"),
    ("--model nets:plain --set model.hidden=-1", "nets:plain"),
    ("--model nets:plain --set model.hidden=many", "nets:plain"),
    ("--model nets:colour", "does not take images of shape (1, 8, 8)"),
    ("--model nets:nan", "not finite"),
    ("--model nets:tuple_", "one tensor"),
    ("--model nets:fails_on_call", "missing"),
    ("--model nets:frozen", "no parameters to train"),
    ("--model nets:unlearnt", "nets:unlearnt"),
    ("--model nets:half", "float32"),
    ("--model nets:odd", "cannot bound"),
    ("--model dm_medium", "too small"),
    ("--model resnet --set model.width=0", "width"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), TRAIN, ids=[line for line, _ in TRAIN])
def test_train(world, line, message, capsys, monkeypatch):
    place = "" if "--out" in line else " --out fresh"
    check(world, train_main, line + place + " --quiet", message, capsys, monkeypatch)


FOREIGN = (
    "--model cnn_tiny --weights models/state.pt --model-set width=4 --model-set hidden=16 --dataset digits --eps 0.1"
)
VERIFY = [
    ("", "--model is missing"),
    ("--model nowhere.pt", "cannot read the checkpoint"),
    ("--model empty", "cannot read the checkpoint"),
    ("--model file", "not a checkpoint"),
    ("--model run --bound crwn", "did you mean 'crown'"),
    ("--model run --bound ''", "expected a name"),
    ("--model run --bound ibp,ibp", "twice"),
    ("--model run --bound clean:", "clean:"),
    ("--model run --eps 2", "did you mean 2/255"),
    ("--model run --eps=-1/255", "from 0 to 1"),
    ("--model run --eps -1/255", "--eps"),
    ("--model run --eps much", "a fraction"),
    ("--model run --first 0", "--first"),
    ("--model run --first -2", "--first"),
    ("--model run --first some", "--first"),
    ("--model run --batch-size 0", "--batch-size"),
    ("--model run --batch-size huge", "--batch-size"),
    ("--model run --dtype float16", "--dtype"),
    ("--model run --tolerance small", "--tolerance"),
    ("--model run --tolerance -1", "tolerance"),
    ("--model run --tolerance nan", "tolerance"),
    ("--model run --device gpu9", "--device gpu9"),
    ("--model run --split training", "--split"),
    ("--model run --split validation", "without a validation split"),
    ("--model run --shard 4/4", "shard"),
    ("--model run --shard 1", "shard"),
    ("--model run --shard a/b", "shard"),
    ("--model run --set restarts=3", "stage.key=value"),
    ("--model run --set pgd.restart=3", "did you mean 'restarts'"),
    ("--model run --set pgd.restarts=none", "restarts"),
    ("--model run --set pgd.steps=0", "steps"),
    ("--model run --bound ibp --set crown.tolerance=1", "does not run"),
    ("--model run --dataset mnits", "did you mean 'mnist'"),
    ("--model run --dataset mnist --data-dir nowhere", "let train.py fetch it: --set data.download=true"),
    ("--model run --dataset tensors", "data.path"),
    ("--model run --bound ibp --budget -1", "budget: expected seconds >= 0"),
    ("--model run --bound ibp --budget nan", "budget"),
    ("--model run --bound ibp --radius --report", "--report is about a run without --radius"),
    ("--model run --bound ibp --seed -1", "seed: expected at least 0"),
    ("--model run --bound bab --set bab.timeout=0", "timeout"),
    ("--model run --bound bab --set bab.timeout=-3", "timeout"),
    ("--model run --bound ibp --out file", "file: cannot write"),
    ("--model run --bound ibp --out file/below", "cannot write"),
    ("--model run --bound ibp --radius --out file", "file: cannot write"),
    ("--model broken_syntax:make --weights models/state.pt --dataset digits --eps 0.1", "broken_syntax"),
    ("export --model run --out fresh --first -2", "--first"),
    ("export --model run --out fresh --first 0", "--first"),
    ("export --model run --out fresh --timeout -1", "timeout: expected seconds > 0"),
    ("export --model run --out file", "cannot write: Not a directory"),
    ("merge ledgers/good --out file", "cannot write"),
    ("report ledgers/good --out file", "cannot write: Not a directory"),
    ("--model run --weights models/state.pt", "--weights"),
    ("--model run --classes 10", "--classes"),
    ("--model cnn_tinny --weights models/state.pt --dataset digits", "cnn_tinny"),
    ("--model cnn_tiny --weights models/state.pt", "--dataset is missing"),
    ("--model cnn_tiny --dataset digits", "--weights is missing"),
    (f"{FOREIGN.removesuffix(' --eps 0.1')}", "--eps is missing"),
    ("--model cnn_tiny --weights models/state.pt --dataset digits --eps 0.1", "do not fit"),
    ("--model cnn_tiny --weights models/state_list.pt --dataset digits --eps 0.1", "expected a state_dict"),
    ("--model cnn_tiny --weights models/with_code.pt --dataset digits --eps 0.1", "could run code"),
    ("--model cnn_tiny --weights models/empty.pt --dataset digits --eps 0.1", "empty.pt"),
    ("--model cnn_tiny --weights models/cut.pt --dataset digits --eps 0.1", "cut.pt"),
    ("--model cnn_tiny --weights nowhere --dataset digits --eps 0.1", "nowhere"),
    ("--model cnn_tiny --weights models/state.pt --dataset digits --eps 0.1 --model-set width", "key=value"),
    (f"{FOREIGN} --std 0", "std"),
    (f"{FOREIGN} --std nan", "--std"),
    (f"{FOREIGN} --shape 1,8", "--shape"),
    (f"{FOREIGN} --shape a,b,c", "--shape"),
    (f"{FOREIGN} --classes -2", "classes"),
    (f"{FOREIGN} --mean 0.1,0.2", "--mean"),
    ("--model models/rubbish.onnx --dataset digits --eps 0.1", "rubbish.onnx"),
    ("--model nowhere.onnx --dataset digits --eps 0.1", "nowhere.onnx"),
    *(
        (f"--model models/{name}.pt --dataset digits --bound ibp", message)
        for name, message in {
            "foreign": "no 'format'",
            "newer": "newer than this package",
            "text_format": "format",
            "with_code": "could run code",
            "nan": "not finite",
            "misfit": "do not fit",
            "no_weights": "weights: Field required",
            "no_config": "config: Field required",
            "no_shape": "shape: Field required",
            "weights_list": "weights",
            "weights_numbers": "weights",
            "missing_weight": "do not fit",
            "extra_weight": "do not fit",
            "unknown_model": "cnn_titanic",
            "model_text": "model",
            "other_classes": "do not fit",
            "classes_text": "classes",
            "shape_text": "shape",
            "shape_flat": "shape",
            "mean_text": "mean",
            "std_zero": "std",
            "std_nan": "std",
            "mean_nan": "mean",
            "mean_three": "mean",
            "config_text": "config",
            "config_eps": "did you mean 8/255",
            "config_typo": "did you mean 'training'",
            "imports": "--trust os:system",
            "imports_name": "--trust os:system",
            "plugins": "--trust antigravity",
            "half": "the weights are float16",
            "empty": "not a checkpoint",
            "text": "not a checkpoint",
            "cut": "cut short",
            "flipped": "damaged",
            "zip": "not a checkpoint",
            "climbs": "not a checkpoint",
        }.items()
    ),
    ("--model run --budget -1", "budget"),
    ("--model run --budget nan", "budget"),
    ("--model run --seed -1", "seed"),
    ("--model run --bound ibp --out file", "file"),
    ("--model run --bound ibp --out file/inside", "file"),
    ("--model run --bound ibp --out /proc/nowhere", "/proc/nowhere"),
    ("export --model run --first -2 --out fresh", "--first"),
    ("export --model run --eps 8 --out fresh", "did you mean 8/255"),
    # what is there already
    ("--model run --bound ibp --first 10 --out ledgers/good", "--resume"),
    *(
        (f"--model run --bound ibp --first 10 --resume --out ledgers/{name}", message)
        for name, message in {
            "corrupt": "line 5",
            "binary": "line 5",
            "doubled": "second row",
            "headless": "head of a ledger",
            "garbage_head": "head of a ledger",
            "newer": "head of a ledger",
            "bad_status": "line 5",
            "bad_index": "line 5",
            "missing_key": "line 5",
            "other_model": "another question",
            "other_eps": "another question",
        }.items()
    ),
    ("--model run --bound ibp --first 10 --resume --out ledgers/good --eps 0.2", "another question"),
    ("--model run --bound ibp --first 10 --resume --out ledgers/good --dtype float64", "another question"),
    ("merge", "FOLDER"),
    ("merge empty --out fresh", "ledger.jsonl"),
    ("merge ledgers/good ledgers/copy --out fresh", "overlap"),
    ("merge ledgers/corrupt --out fresh", "line 5"),
    ("check ledgers/good", "--model is missing"),
    ("check empty --model run", "ledger.jsonl"),
    ("check ledgers/other_model --model run", "another question"),
    ("check ledgers/good --model run --attack nothing", "nothing"),
    ("report empty", "ledger.jsonl"),
    ("report", "FOLDER"),
    ("export --model run", "--out"),
    ("export --model nowhere --out fresh", "nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), VERIFY, ids=[line or "nothing" for line, _ in VERIFY])
def test_verify(world, line, message, capsys, monkeypatch):
    tool = line.split(" ")[0] in ("merge", "check", "report", "export")
    place = "" if tool else " --quiet" if "--out" in line else " --quiet --out fresh"
    check(world, verify_main, line + place, message, capsys, monkeypatch)


def test_there_are_enough():
    assert len(TRAIN) + len(VERIFY) >= 80


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.py --method standard --alpha 0.2 --out fresh", "there are none, leave it out"),
        ("train.py --set plugins=[broken_syntax] --out fresh", "broken_syntax"),
        ("verify.py --model models/with_code.pt", "could run code"),
    ],
)
def test_as_processes(world, command, message):
    """The same from outside: exit status, stderr, and nothing on stdout."""
    script, *words = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{world / 'code'}", "PYTHONDONTWRITEBYTECODE": "1"}
    before = snapshot(world)
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words], cwd=world, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert snapshot(world) == before
