"""Many cells: skipped where they are done, in parallel where that was asked for; one that fails stops no other."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from expressive_losses.cli.common import choose_device
from expressive_losses.errors import Interrupted, UserError
from expressive_losses.experiments.execute import execute
from expressive_losses.experiments.grid import Cell, described
from expressive_losses.experiments.processes import end_with_parent
from expressive_losses.locking import FolderInUse, is_free

State = Literal["done", "there", "busy", "failed"]
_WAIT = 2.0


@dataclass(frozen=True)
class Job:
    """All that the work on one cell depends on.

    Attributes:
        cell: what to do.
        root: folder of all cells.
        device: "auto", or a name.
        data_root: folder of the data sets.
    """

    cell: Cell
    root: Path
    device: str = "auto"
    data_root: Path | None = None


@dataclass(frozen=True)
class Result:
    """What became of a cell: done now, there before, busy (another process has it), or failed, and why."""

    cell: Cell
    state: State
    error: str = ""


def run(
    jobs: Sequence[Job],
    processes: int,
    say: Callable[[str], None],
    done: Callable[[Cell], None] = lambda cell: None,
) -> list[Result]:
    """Do the cells; those that another process works on are waited for at the end.

    Args:
        jobs: cells that train the same network may come several times.
        processes: at once; more than one share the CPU's cores, or take the GPUs in turn.
        say: gets a line for each cell.
        done: gets each cell that was done, as soon as it is.

    Returns:
        The results of all jobs.
    """
    results: list[Result] = []
    left = list(jobs)
    while left:
        for result in _tried([job for job in left if _is_free(job)], processes):
            if result.state == "busy":  # since a moment ago
                continue
            results.append(result)
            if result.state == "done":
                done(result.cell)
            say(f"[{len(results)}] {result.state}: {described(result.cell)} {result.error}".rstrip())
        finished = {id(result.cell) for result in results}
        left = [job for job in left if id(job.cell) not in finished]
        if left:
            time.sleep(_WAIT)
    return results


def _is_free(job: Job) -> bool:
    """Return whether no other process works on a cell: asked first, since processes of our own take seconds to start.

    A folder inside it may be held without it, by train.py or verify.py.
    """
    folder = job.root / job.cell.key
    return all(is_free(lock.parent) for lock in (*folder.glob(".lock"), *folder.glob("*/.lock")))


def _tried(jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """Try each cell once."""
    return _here(jobs) if processes == 1 else _in_processes(jobs, processes)


def _here(jobs: Sequence[Job]) -> Iterator[Result]:
    return (_attempt(job) for job in jobs)


def _in_processes(jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """One process a cell at a time; the same network is never trained by two.

    When a process is killed (out of memory?), the pool is lost with it: what was in work is tried again, each alone, so
    that only the culprit fails, and the rest goes on in a new pool.
    """
    waiting = deque(list(group) for _, group in itertools.groupby(_sorted(jobs), key=lambda job: job.cell.key))
    while waiting:
        lost = yield from _in_a_pool(waiting, processes)
        for group in lost:
            if (yield from _in_a_pool(deque([group]), 1)):
                yield from (Result(job.cell, "failed", "its process was killed (out of memory?)") for job in group)


def _in_a_pool(waiting: deque[list[Job]], processes: int) -> Generator[Result, None, list[list[Job]]]:
    """Take groups until none waits or the pool is lost; return the groups that it was at then."""
    lost: list[list[Job]] = []
    at_work: dict[Future[list[Result]], list[Job]] = {}
    with _pool(processes) as pool, _sigterm_to_children(pool):
        while at_work or (waiting and not lost):
            while waiting and not lost and len(at_work) < processes:  # no more than that: the others were not begun
                group = waiting.popleft()
                try:
                    at_work[pool.submit(_attempt_all, group)] = group
                except BrokenProcessPool:
                    lost.append(group)
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                group = at_work.pop(future)
                try:
                    yield from _matched(group, future.result())
                except BrokenProcessPool:
                    lost.append(group)
    return lost


@contextmanager
def _sigterm_to_children(pool: ProcessPoolExecutor) -> Iterator[None]:
    """On SIGTERM the processes save and stop, cells that have not begun are dropped, and Interrupted is raised."""

    def stop(_signal, _frame) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise Interrupted

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _sorted(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with equal networks together, else in order."""
    first = {}
    for index, job in enumerate(jobs):
        first.setdefault(job.cell.key, index)
    return sorted(jobs, key=lambda job: first[job.cell.key])


def _matched(group: Sequence[Job], results: Sequence[Result]) -> Iterator[Result]:
    """Yield the results with our own cells in place of the copies that came back from another process."""
    return (Result(job.cell, result.state, result.error) for job, result in zip(group, results, strict=True))


def _pool(processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(processes):
        slots.put(slot)
    return ProcessPoolExecutor(processes, context, initializer=_start, initargs=(slots, processes))


def _start(slots, processes: int) -> None:
    """Give this process its GPU, or its share of the cores; it ends when the runner does."""
    end_with_parent()
    slot = slots.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _attempt_all(jobs: Sequence[Job]) -> list[Result]:
    return [_attempt(job) for job in jobs]


def _attempt(job: Job) -> Result:
    """Do a cell and say what became of it; Ctrl-C and SIGTERM go through."""
    try:
        worked = execute(job.cell, job.root, choose_device(job.device), job.data_root)
    except FolderInUse:
        return Result(job.cell, "busy")
    except UserError as error:
        return Result(job.cell, "failed", str(error))
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in one cell must not cost the others
        traceback.print_exc(file=sys.stderr)
        return Result(job.cell, "failed", f"{type(error).__name__}: {error}")
    return Result(job.cell, "done" if worked else "there")
