"""The same from outside: exit status, stderr, and nothing on stdout."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from folders import snapshot

ROOT = Path(__file__).parent.parent.parent


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
