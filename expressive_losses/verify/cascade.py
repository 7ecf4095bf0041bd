"""A list of verifiers, from cheap to dear; each sees only what is still undecided."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UnsupportedNetwork, UserError, is_out_of_memory
from expressive_losses.registry import VERIFIERS, suggest
from expressive_losses.verify.base import Problem, Status, Verdict, Verifier, is_counterexample

#: Interval bounds come before the attack: they cost two forward passes an image, PGD some eighty, and what they prove
#: needs no attack. The other bounds come after it: they cost more than finding a counterexample.
CASCADE = ("clean", "ibp", "pgd", "crown-ibp", "crown", "alpha-crown", "bab")


def build_stages(
    bound: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    tolerance: float | None = None,
) -> tuple[Verifier, ...]:
    """Return the stages that ``--bound`` names.

    "crown" or "crown,bab": clean, pgd, then those; "ibp,crown": clean, ibp, pgd, crown. "cascade": :data:`CASCADE`. A
    list that starts with "clean" is taken as it is, so "clean,ibp" attacks nothing. Underscores are read as dashes.

    Args:
        bound: names of verifiers, separated by commas.
        options: fields of some of the stages, by name: ``{"pgd": {"restarts": 10}}``.
        tolerance: for every stage that has one; ``None`` keeps the defaults.

    Raises:
        UserError: unknown name or field, a name given twice, "clean" not first, options for a stage that is not there,
            a tolerance that is not safe for a stage.
    """
    names = _stage_names(bound)
    options = {_dashed(name): dict(fields) for name, fields in (options or {}).items()}
    for name in options:
        if name not in names:
            raise UserError(f"options for bound '{name}', which does not run{suggest(name, names)}")
    return tuple(_stage(name, options.get(name, {}), tolerance) for name in names)


def _dashed(name: str) -> str:
    name = name.strip()
    return name if ":" in name else name.replace("_", "-")  # an import path is left alone


def _stage_names(bound: str) -> list[str]:
    names = [_dashed(name) for name in bound.split(",")]
    if "" in names:
        raise UserError(f"bound: expected names such as crown or ibp,crown or cascade, got nothing in '{bound}'")
    names = [part for name in names for part in (CASCADE if name == "cascade" else (name,))]
    if "clean" in names[1:] and names[0] != "clean":
        raise UserError(f"bound: 'clean' comes first: what it decides is natural accuracy, got '{bound}'")
    if names[0] != "clean":
        names = ["clean", *names]
        if "pgd" not in names:
            names.insert(2 if names[1] == "ibp" else 1, "pgd")  # as in CASCADE
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"bound '{twice[0]}' is named twice in '{bound}'")
    return names


def _stage(name: str, fields: Mapping[str, Any], tolerance: float | None) -> Verifier:
    if name not in VERIFIERS.names() and ":" not in name:
        raise UserError(f"unknown bound '{name}'{suggest(name, ['cascade', *VERIFIERS.names()])}")
    shared = {}
    if tolerance is not None and "tolerance" in VERIFIERS[name].model_fields:
        shared["tolerance"] = tolerance
    stage = VERIFIERS.build({"name": name, **shared, **fields})
    if getattr(stage, "tolerance", stage.least_tolerance) < stage.least_tolerance:
        least = f"{stage.least_tolerance:g}"
        raise UserError(
            f"bound '{name}': a tolerance of {stage.tolerance:g} is not safe, its own errors come near that; "
            f"expected at least {least}, e.g. --set {name}.tolerance={least} for it alone"
        )
    return stage


@dataclass(frozen=True)
class Outcome:
    """What is known of one image at the end.

    Attributes:
        index: in the data set.
        prediction: argmax on the clean image, or ``None`` if no stage computed it.
        decided_by: the stage, or ``None`` where UNKNOWN.
        margin: the worst lower bound on f_y - f_j over the box; -inf if no bound was computed.
        seconds: time of its batches, shared equally among their images.
        witness: where FALSIFIED, the counterexample (*image), pixel units.
        timed_out: UNKNOWN because the deadline passed before the last stage was through with it.
    """

    index: int
    label: int
    prediction: int | None
    status: Status
    decided_by: str | None
    margin: float
    seconds: float
    witness: Tensor | None = None
    timed_out: bool = False


class Cascade:
    """Runs the stages on one problem, in batches that are halved when memory runs out.

    Args:
        stages: in the order in which they run.
        batch_size: images at once in every stage; ``None``: what each stage finds sensible for the device.
    """

    def __init__(self, stages: Sequence[Verifier], batch_size: int | None = None) -> None:
        if not stages:
            raise UserError("a cascade needs at least one stage")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch size: expected at least 1, or auto, got {batch_size}")
        self.stages = tuple(stages)
        self._asked = batch_size
        self._sizes: dict[str, int] = {}  # by stage: what fitted into memory so far
        #: Stages that cannot handle the network, and why: they prove nothing, the others go on.
        self.skipped: dict[str, str] = {}

    def batch_size(self, stage: Verifier, device: torch.device) -> int:
        """Return how many images ``stage`` gets at once."""
        return self._sizes.get(stage.name) or self._asked or stage.batch_size(device)

    def chunk_size(self, device: torch.device) -> int:
        """Return how many images a problem should have: what fills the stage with the largest batches."""
        return self._asked or max(stage.batch_size(device) for stage in self.stages)

    def __call__(self, network: BoundedNetwork, problem: Problem) -> Iterator[list[Outcome]]:
        """Yield outcomes as soon as they are final, batch by batch; at the end those of undecided images.

        A proof that arrives after the deadline does not count.

        Raises:
            UserError: when one image alone does not fit into memory, or no stage can bound the network.
        """
        state = _State(problem)
        for stage in self.stages:
            if stage.name in self.skipped:
                continue
            try:
                yield from self._run_stage(stage, network, problem, state)
            except UnsupportedNetwork as error:
                self._skip(stage, error)
        late = problem.is_late()
        yield state.outcomes(state.undecided(), timed_out=late)

    def _skip(self, stage: Verifier, error: UnsupportedNetwork) -> None:
        """Go on without a stage, unless it is the only one that could have proven anything."""
        self.skipped[stage.name] = str(error)
        if all(other.name in self.skipped for other in self.stages if other.kind in ("bound", "complete")):
            raise error

    def _run_stage(
        self, stage: Verifier, network: BoundedNetwork, problem: Problem, state: _State
    ) -> Iterator[list[Outcome]]:
        queue, device = state.undecided(), problem.images.device
        while queue and not problem.is_late():
            size = self.batch_size(stage, device)
            rows = queue[:size]
            began = time.monotonic()
            verdict = self._attempt(stage, network, problem.select(rows, state.margins))
            if verdict is None:
                self._halve(stage, len(rows), device)
                continue
            queue = queue[size:]
            decided = state.record(rows, stage.name, verdict, (time.monotonic() - began) / len(rows))
            if decided:
                yield state.outcomes(decided)

    def _attempt(self, stage: Verifier, network: BoundedNetwork, problem: Problem) -> Verdict | None:
        """Return the verdict with its claims checked, or ``None`` when memory ran out."""
        try:
            return _checked(network, problem, stage(network, problem))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _halve(self, stage: Verifier, size: int, device: torch.device) -> None:
        if size == 1:
            problem = f"one image does not fit into the memory of {device}"
            raise UserError(f"bound '{stage.name}': {problem}; choose a cheaper bound")
        self._sizes[stage.name] = size // 2
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _checked(network: BoundedNetwork, problem: Problem, verdict: Verdict) -> Verdict:
    """Return the verdict without the claims that do not hold, whatever plug-in made them.

    FALSIFIED needs a witness that refutes the label when it is evaluated again; VERIFIED needs positive
    margins, and to be in time.
    """
    refuted = _refuted(network, problem, verdict)
    proven = (verdict.margins > 0).all(1).tolist() if not problem.is_late() else [False] * len(problem)
    holds = {Status.FALSIFIED: refuted, Status.VERIFIED: proven}
    status = tuple(
        one if holds.get(one) is None or holds[one][row] else Status.UNKNOWN for row, one in enumerate(verdict.status)
    )
    margins = torch.fmax(problem.margins, verdict.margins)  # fmax: a NaN loses
    return Verdict(status, margins, verdict.witness, verdict.predictions)


def _refuted(network: BoundedNetwork, problem: Problem, verdict: Verdict) -> list[bool]:
    if Status.FALSIFIED not in verdict.status or verdict.witness is None:
        return [False] * len(problem)
    return is_counterexample(network, problem.box, problem.labels, verdict.witness).tolist()


class _State:
    """What the stages have found about the images of one problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        count = len(problem)
        self.margins = problem.margins.clone()
        self._labels = problem.labels.tolist()
        self._status = [Status.UNKNOWN] * count
        self._decided_by: list[str | None] = [None] * count
        self._predictions: list[int | None] = [None] * count
        self._seconds = [0.0] * count
        self._witness: dict[int, Tensor] = {}

    def undecided(self) -> list[int]:
        return [row for row, status in enumerate(self._status) if status is Status.UNKNOWN]

    def record(self, rows: list[int], stage: str, verdict: Verdict, seconds: float) -> list[int]:
        """Enter a stage's verdict on ``rows``; return those that it decided."""
        self.margins[torch.as_tensor(rows, device=self.margins.device)] = verdict.margins
        predictions = None if verdict.predictions is None else verdict.predictions.tolist()
        for at, row in enumerate(rows):
            self._seconds[row] += seconds
            if predictions is not None:
                self._predictions[row] = predictions[at]
            if verdict.status[at] is Status.UNKNOWN:
                continue
            self._status[row], self._decided_by[row] = verdict.status[at], stage
            if verdict.status[at] is Status.FALSIFIED:
                self._witness[row] = verdict.witness[at].cpu()
        return [row for row in rows if self._status[row] is not Status.UNKNOWN]

    def outcomes(self, rows: list[int], timed_out: bool = False) -> list[Outcome]:
        """Return what is known of ``rows``."""
        worst = self.margins.amin(1).tolist()
        return [
            Outcome(
                index=self._problem.indices[row],
                label=self._labels[row],
                prediction=self._predictions[row],
                status=self._status[row],
                decided_by=self._decided_by[row],
                margin=worst[row],
                seconds=self._seconds[row],
                witness=self._witness.get(row),
                timed_out=timed_out,
            )
            for row in rows
        ]
