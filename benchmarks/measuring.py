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
from typing import Any, TextIO

import torch
from rounding import circumstances as _circumstances


class Worker:
    """A process of this script that does blocks of work when it is told to, and says what each took.

    Args:
        arguments: of the script; they are to make it call :func:`work_for`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **arguments: Any) -> dict[str, float]:
        """Do one block; return its "seconds", "cpu_seconds" and the process's "peak_mib" and "before_mib".

        Raises:
            RuntimeError: when the process has ended; it has said why on stderr.
        """
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the measured process ended with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def work_for(parent: TextIO, block: Callable[..., object], before_mib: float) -> None:
    """Do the blocks that :meth:`Worker.ask` asks for on stdin, until it closes; answers go to ``parent``.

    Args:
        parent: the standard output that this process was started with.
        block: called with what was asked.
        before_mib: memory before the network was built.
    """
    for line in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        block(**json.loads(line))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib(), "before_mib": before_mib}
        print(json.dumps(answer), file=parent, flush=True)


def in_turn(workers: Mapping[str, Worker], rounds: int, **block: Any) -> dict[str, list[dict[str, float]]]:
    """Return the answers of each worker to the same block, ``rounds`` times in turn, after one that is not counted.

    In turn, so that other work on the machine disturbs all alike: ratios are to be taken of neighbours.
    """
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            answer = worker.ask(**block)
            if turn > 0:
                answers[name].append(answer)
    return answers


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
