"""Ledgers and run directories that are wrong, on the disk; what is in a folder."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import torch

from expressive_losses import checkpoint
from expressive_losses.cli import verify_main


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
        "eps_in_words": [head.replace('"eps": "0.1", "eps_value": 0.1', '"eps": "0.2", "eps_value": 0.1'), *rows],
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


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time of change and size; locks, which name the last process, left out."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns if path.is_file() else 0, path.stat().st_size)
        for path in folder.rglob("*")
        if path.name != ".lock" and "__pycache__" not in path.parts
    }
