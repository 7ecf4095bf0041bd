"""Steps repeated as CUDA graphs: what a step launches is recorded once, then launched as a whole.

A step is hundreds of kernels, and python may need longer to launch them than a large GPU to run them. A graph repeats
the same operations on the same memory. So whatever differs from step to step must be in memory: a number on the host (a
radius, a learning rate) would be repeated as it was. :class:`Graphs` therefore hands a step its numbers as scalars on
the device, and keeps one graph for each structure of a step.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

Terms = dict[str, Tensor]
#: A step on (indices of images, numbers by name).
Step = Callable[[Tensor, Mapping[str, Tensor]], Terms]

#: Steps of each structure before it is recorded: they set up libraries, choose algorithms, allocate what stays.
STEPS_BEFORE = 3


class CannotCapture(Exception):
    """A step does something that a graph cannot hold. It has not been done."""


class Recorder(Protocol):
    """Where the records are made: :class:`CudaRecorder`, and one for the CPU in the tests."""

    def prepare(self, work: Callable[[], Terms]) -> Terms:
        """Do what is to be recorded later."""

    def record(self, work: Callable[[], Terms]) -> tuple[Terms, Callable[[], None]]:
        """Do it, and return with its result a function that does the same again, into the same memory.

        Raises:
            CannotCapture: it was not done.
        """


class Graphs:
    """Repeats steps; the first :data:`STEPS_BEFORE` of a structure, and batches of another size, run as they are.

    Args:
        recorder: makes the graphs.
        batch_size: of the steps that are repeated.
        device: of indices and numbers.
    """

    def __init__(self, recorder: Recorder, batch_size: int, device: torch.device | str) -> None:
        self._recorder = recorder
        self._indices = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._numbers: dict[str, Tensor] = {}
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[Terms, Callable[[], None]]] = {}

    def run(self, structure: Hashable, step: Step, indices: Tensor, numbers: Mapping[str, float]) -> Terms:
        """Do one step and return its terms.

        Args:
            structure: what decides which operations ``step`` consists of. It is called only where there is no graph of
                that structure yet, and must do the same operations on the same memory, but for its arguments.
            indices: of the batch's images.
            numbers: all else that differs from step to step.

        Raises:
            CannotCapture: the step was not done.
        """
        for name, number in numbers.items():
            if name not in self._numbers:
                self._numbers[name] = torch.zeros((), device=self._indices.device)
            self._numbers[name].fill_(number)  # it travels with the launch: nobody waits
        if len(indices) != len(self._indices):
            return step(indices, self._numbers)
        self._indices.copy_(indices)
        return self._run(structure, lambda: step(self._indices, self._numbers))

    def _run(self, structure: Hashable, work: Callable[[], Terms]) -> Terms:
        if self._seen[structure] < STEPS_BEFORE:
            self._seen[structure] += 1
            return self._recorder.prepare(work)
        if structure not in self._recorded:
            self._recorded[structure] = self._recorder.record(work)
            terms, _ = self._recorded[structure]
        else:
            terms, repeat = self._recorded[structure]
            repeat()
        return {name: value.clone() for name, value in terms.items()}  # the next step writes over them


class CudaRecorder:
    """Records CUDA graphs, which share their memory: one runs at a time, and what it returns is copied at once.

    Args:
        generator: that steps draw from, on the GPU; its seed may be set anew between steps.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(generator.device)

    def prepare(self, work: Callable[[], Terms]) -> Terms:
        """Do it beside the default stream, as torch's notes on CUDA graphs ask for."""
        current = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True")  # an optimiser's, that there is no graph yet
            terms = work()
        current.wait_stream(self._side)
        return terms

    def record(self, work: Callable[[], Terms]) -> tuple[Terms, Callable[[], None]]:
        """Record it, which launches nothing, then launch it."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._side.device)
        try:
            graph.register_generator_state(self._generator)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                terms = work()
        except (RuntimeError, AttributeError) as error:  # the latter: a torch that cannot register generators
            self._clean_up(current)
            # torch's last word is then only that an earlier operation failed
            reason = error.__context__ if error.__context__ and "previous error" in str(error) else error
            raise CannotCapture(str(reason).strip().partition("\n")[0]) from error
        graph.replay()
        return terms, graph.replay

    def _clean_up(self, current: torch.cuda.Stream) -> None:
        """Undo what torch leaves of a capture that failed: the side stream as current one, its memory as in use.

        Otherwise no memory that is cached could be freed for the rest of the process.
        """
        torch.cuda.set_stream(current)
        with suppress(RuntimeError, AttributeError):  # torch had not come as far; or has no such functions any more
            torch._C._cuda_endAllocateToPool(self._side.device.index, self._pool)
            torch._C._cuda_releasePool(self._side.device.index, self._pool)
