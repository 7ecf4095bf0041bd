"""Checkpoints and weights that are wrong, on the disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from expressive_losses import checkpoint


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
