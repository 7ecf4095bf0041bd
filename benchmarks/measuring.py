"""What the benchmarks of training share: medians of alternating blocks, peak memory, and the circumstances of a row."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rounding import circumstances as _circumstances


def alternating_blocks(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call, ``rounds`` times in turn, after one turn that is not counted.

    In turn, so that other work on the machine disturbs all alike: ratios are to be taken of neighbours.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of neighbours."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


def resident_mib() -> float:
    """Return the memory of this process that is in RAM now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """Return the most memory that this process ever had in RAM, in MiB (Linux).

    Not getrusage's ru_maxrss: a child process starts with its parent's.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def in_a_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Run this script again with other arguments and return the JSON of its last line: peaks never fall again."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def circumstances() -> dict[str, Any]:
    """Return what figures of speed depend on: command, hardware, threads, date, versions, commit."""
    return {**_circumstances(), "threads": torch.get_num_threads(), "git": _commit()}


def _commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
