"""The cascade: who sees what, memory, deadlines, claims of plug-ins, names and settings of stages."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
import torch
from verifying import CPU, mlp, problem_for, run

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.verify import (
    CASCADE,
    Cascade,
    Problem,
    Status,
    Verdict,
    Verifier,
    build_stages,
)
from expressive_losses.verify.base import is_counterexample


class Scripted(Verifier):
    """A stage that answers with one status, whatever is asked; it notes its batches."""

    name: ClassVar[str] = "scripted"
    kind: ClassVar[str] = "complete"
    batches: ClassVar[list[tuple[int, ...]]] = []
    says: Status = Status.UNKNOWN
    margin: float = -1.0
    fits: int = 1000
    error: str = "out of memory"
    sleep: float = 0.0

    def __call__(self, network, problem):
        if len(problem) > self.fits:
            raise RuntimeError(self.error)
        self.batches.append(problem.indices)
        time.sleep(self.sleep)
        margins = torch.full_like(problem.margins, self.margin)
        return Verdict((self.says,) * len(problem), margins, problem.images + 0)


@pytest.fixture(autouse=True)
def forget_batches():
    Scripted.batches.clear()


def test_batches_are_halved_until_they_fit_and_stay_small():
    network = mlp(0)
    cascade = Cascade([Scripted(says=Status.VERIFIED, margin=1.0, fits=3)], batch_size=10)
    for _ in range(2):
        outcomes = [one for batch in cascade(network, problem_for(network, 0.1)) for one in batch]
        assert sorted(one.index for one in outcomes) == list(range(10))
        assert {one.status for one in outcomes} == {Status.VERIFIED}
    assert [len(batch) for batch in Scripted.batches] == [2] * 10  # 10 -> 5 -> 2, and remembered


def test_one_image_that_does_not_fit_is_an_error_that_names_the_stage():
    network = mlp(0)
    with pytest.raises(UserError, match="bound 'scripted': one image does not fit into the memory of cpu"):
        run([Scripted(fits=0)], network, problem_for(network, 0.1))


def test_other_errors_are_not_swallowed():
    network = mlp(0)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run([Scripted(fits=0, error="shapes do not match")], network, problem_for(network, 0.1))


def test_after_the_deadline_images_are_unknown():
    network = mlp(0)
    problem = problem_for(network, eps=0.0, deadline=time.monotonic() - 1)
    outcomes = run("ibp", network, problem).values()
    assert {(one.status, one.timed_out, one.decided_by) for one in outcomes} == {(Status.UNKNOWN, True, None)}


def test_a_proof_that_comes_too_late_does_not_count():
    network = mlp(0)
    late = problem_for(network, eps=0.0, deadline=time.monotonic() + 0.05)
    slow = Scripted(says=Status.VERIFIED, margin=1.0, sleep=0.1)
    assert {one.status for one in run([slow], network, late).values()} == {Status.UNKNOWN}


def test_claims_of_a_plugin_are_checked():
    """FALSIFIED by the clean image itself, VERIFIED with a negative margin: neither holds."""
    network = mlp(0)
    problem = problem_for(network, 0.1)
    for stage in (Scripted(says=Status.FALSIFIED), Scripted(says=Status.VERIFIED, margin=-1.0)):
        assert {one.status for one in run([stage], network, problem).values()} == {Status.UNKNOWN}


def test_a_witness_outside_the_box_refutes_nothing():
    network = mlp(0)
    problem = problem_for(network, eps=0.01)
    far = 1 - problem.images.round()
    with torch.no_grad():
        fooled = network(far).argmax(1) != problem.labels
    assert fooled.any()
    assert not is_counterexample(network, problem.box, problem.labels, far).any()


def test_each_stage_sees_only_what_is_undecided():
    network = mlp(1)
    problem = problem_for(network, eps=0.05, count=20)
    outcomes = run("ibp", network, problem)
    undecided = [row for row in range(20) if outcomes[row].status is Status.UNKNOWN]
    assert 0 < len(undecided) < 20
    run([*build_stages("ibp"), Scripted()], network, problem)
    assert [row for batch in Scripted.batches for row in batch] == undecided


def test_margins_only_grow_along_the_cascade():
    network = mlp(1)
    problem = problem_for(network, eps=0.05)
    lists = ("clean,ibp", "clean,ibp,crown", "clean,ibp,crown,alpha-crown")
    first, second, third = (run(bound, network, problem) for bound in lists)
    for row in range(10):
        assert first[row].margin <= second[row].margin <= third[row].margin


@pytest.mark.parametrize(
    "bound, names",
    [
        ("crown", ("clean", "pgd", "crown")),
        ("ibp, crown_ibp", ("clean", "ibp", "pgd", "crown-ibp")),
        ("clean,ibp", ("clean", "ibp")),
        ("pgd,ibp", ("clean", "pgd", "ibp")),
        ("cascade", CASCADE),
    ],
)
def test_bound_names(bound, names):
    assert tuple(stage.name for stage in build_stages(bound)) == names


@pytest.mark.parametrize("eps", [0.02, 0.08])
def test_interval_bounds_before_the_attack_change_no_row(eps):
    """What IBP proves no attack can refute, and each image has its own noise: only the time differs."""
    network = mlp(0)
    problem = problem_for(network, eps, count=30)
    attacked_first, bounded_first = (run(f"clean,{order},crown", network, problem) for order in ("pgd,ibp", "ibp,pgd"))
    assert {one.decided_by for one in bounded_first.values()} >= {"ibp", "pgd", "crown"}
    for row, one in attacked_first.items():
        assert (one.status, one.decided_by) == (bounded_first[row].status, bounded_first[row].decided_by)


def test_options_and_tolerance_reach_the_stages():
    options = {"pgd": {"restarts": 3}, "alpha_crown": {"iterations": 7}}
    stages = build_stages("alpha_crown", options, tolerance=0.1)
    assert stages[1].restarts == 3
    assert (stages[2].iterations, stages[2].tolerance) == (7, 0.1)
    assert [VERIFIERS.build(stage.spec()) for stage in stages] == list(stages)


@pytest.mark.parametrize(
    "bound, options, message",
    [
        ("crwn", None, "unknown bound 'crwn'; did you mean 'crown'"),
        ("cascad", None, "did you mean 'cascade'"),
        ("", None, "expected names such as crown"),
        ("ibp,,crown", None, "got nothing in 'ibp,,crown'"),
        ("ibp,", None, "got nothing in 'ibp,'"),
        ("ibp,ibp", None, "bound 'ibp' is named twice"),
        ("ibp,clean", None, "'clean' comes first"),
        ("pgd,clean,crown", None, "'clean' comes first"),
        ("ibp", {"crown": {}}, "options for bound 'crown', which does not run"),
        ("ibp", {"pgd": {"step": 3}}, "unknown key 'step'; did you mean 'steps'"),
        ("attack", {"attack": {"attack": "nothing"}}, "unknown attack 'nothing'"),
    ],
)
def test_mistakes_are_named(bound, options, message):
    with pytest.raises(UserError, match=message):
        build_stages(bound, options)


def test_stages_know_their_batch_sizes():
    cascade = Cascade(build_stages("crown"))
    assert cascade.chunk_size(CPU) == 256
    assert cascade.batch_size(cascade.stages[-1], CPU) == 1
    with pytest.raises(UserError, match="batch size: expected at least 1"):
        Cascade(build_stages("crown"), batch_size=0)


def test_the_forward_pass_on_a_chunk_is_halved_too():
    """Memory for three images at once: a chunk of ten goes through in parts, with the same logits."""
    network = mlp(0)
    x = torch.rand(10, 4)
    sizes = []

    class Small(BoundedNetwork):
        def forward(self, x):
            if len(x) > 3:
                raise RuntimeError("CUDA out of memory")
            sizes.append(len(x))
            return super().forward(x)

    small = Small(network.model, network.shape, network.classes, [0.4], [0.3]).eval()
    problem = Problem.of(small, x, torch.zeros(10, dtype=torch.long), 0.01)
    assert max(sizes) == 3 and sum(sizes) == 10
    torch.testing.assert_close(problem.logits, network(x).detach(), rtol=1e-6, atol=1e-6)


def test_a_tolerance_that_is_not_safe_for_a_stage_is_refused():
    with pytest.raises(UserError, match="bound 'mip': a tolerance of 1e-06 is not safe.* --set mip.tolerance=0.0001"):
        build_stages("crown,mip", tolerance=1e-6)
    assert build_stages("crown,mip", {"mip": {"tolerance": 1e-4}}, tolerance=1e-6)[2].tolerance == 1e-6
