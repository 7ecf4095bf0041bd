"""The commands as they are installed, and what the first of them promises."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("expressive-losses-train", "expressive-losses-verify")


def run(*words, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def installed() -> dict[str, Path]:
    """The console entry points beside this Python, or a skip."""
    found = {name: Path(sys.executable).parent / name for name in NAMES}
    if not all(path.exists() for path in found.values()):
        pytest.skip("the package is not installed here: pip install --no-deps -e .")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_installed_commands_explain_themselves(installed, name, tmp_path):
    done = run(installed[name], "--help", cwd=tmp_path)
    assert done.returncode == 0 and "pixel units" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_installed_commands_train_and_verify(installed, tmp_path):
    train, verify = installed.values()
    quick = ("--epochs=2", "--set=model.width=4", "--set=model.hidden=16", "--set=training.batch_size=256")
    done = run(train, "--quiet", "--device=cpu", "--out=run", *quick, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(verify, "--quiet", "--device=cpu", "--model=run", "--bound=ibp", "--first=20", "--out=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 20
    assert run(verify, "--model=nowhere", cwd=tmp_path).returncode == 2


def test_training_without_a_config_reaches_what_it_promises(tmp_path):
    """Digits at eps 0.1, alpha 0.2: at least 97 % natural and 82 % verified accuracy, in well under a minute."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run(
        sys.executable, ROOT / "train.py", "--method=mtl_ibp", "--alpha=0.2", "--device=cpu", "--out=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eps"] == "0.1" and summary["images"] == 360
    assert summary["natural"] >= 97
    assert summary["ibp"] >= 82
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert spent < 60  # seconds of a processor, whatever else the machine does
    assert "python verify.py --model run/model.pt --bound cascade" in done.stdout
