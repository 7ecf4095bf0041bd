"""Verifiers and their cascade: sound against samples and grids; honest about time, memory and NaN."""

from __future__ import annotations

import itertools
import time
from typing import ClassVar

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.lirpa import Graph
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import Box, margins_of
from expressive_losses.verify import (
    CASCADE,
    Cascade,
    Problem,
    Settings,
    Status,
    Verdict,
    Verifier,
    build_stages,
    table_of,
    verify,
)
from expressive_losses.verify.base import is_counterexample, verdict_of_bounds
from expressive_losses.verify.incomplete import Crown, Ibp

BOUNDS = [name for name in VERIFIERS.names() if VERIFIERS[name].kind in ("bound", "complete")]
CPU = torch.device("cpu")
QUIET = Settings(progress=False)


def mlp(seed: int, inputs: int = 4) -> BoundedNetwork:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return BoundedNetwork(model, (inputs,), 3, mean=[0.4], std=[0.3]).eval()


def cnn(seed: int) -> BoundedNetwork:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)]
    model = nn.Sequential(*layers)
    model(torch.rand(64, 1, 3, 3))  # running statistics that are not the trivial ones
    return BoundedNetwork(model, (1, 3, 3), 3).eval()


def problem_for(network: BoundedNetwork, eps: float, count: int = 10, **fields) -> Problem:
    """Random images, labelled as the network sees them: nothing is misclassified."""
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(5)).to(network.mean)
    with torch.no_grad():
        return Problem.of(network, x, network(x).argmax(1), eps, **fields)


def run(stages, network, problem, **options) -> dict:
    stages = build_stages(stages) if isinstance(stages, str) else stages
    return {one.index: one for batch in Cascade(stages, **options)(network, problem) for one in batch}


def samples(box: Box, count: int = 300) -> list[torch.Tensor]:
    """Corners (all of them for few inputs, else random ones) and uniform points."""
    generator = torch.Generator().manual_seed(7)
    size = box.lower[0].numel()
    if size <= 6:
        picks = [torch.tensor(signs) for signs in itertools.product([False, True], repeat=size)]
    else:
        picks = [torch.rand(size, generator=generator) < 0.5 for _ in range(64)]
    shape = box.lower[0].shape
    corners = [torch.where(pick.view(shape), box.upper, box.lower) for pick in picks]
    return corners + [box.sample(generator) for _ in range(count)]


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("make, seed, eps", [(mlp, 0, 0.02), (mlp, 1, 0.08), (cnn, 0, 0.02), (cnn, 1, 0.08)])
def test_bounds_are_sound(name, make, seed, eps):
    network = make(seed)
    problem = problem_for(network, eps)
    verdict = VERIFIERS.build(name)(network, problem)
    with torch.no_grad():
        lowest = torch.stack([margins_of(network(x), problem.labels) for x in samples(problem.box)]).amin(0)
    assert (verdict.margins <= lowest + 1e-5).all()
    verified = torch.tensor([one is Status.VERIFIED for one in verdict.status])
    assert (lowest[verified] > 0).all()
    assert Status.VERIFIED in verdict.status or eps > 0.02  # otherwise nothing was tested
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.3])
def test_cascade_agrees_with_a_grid_on_two_inputs(eps):
    """A 101 x 101 grid over each box: no violation on it where VERIFIED, a real one where FALSIFIED."""
    network = mlp(3, inputs=2)
    problem = problem_for(network, eps, count=12)
    outcomes = run("cascade", network, problem)
    line = torch.linspace(0, 1, 101)
    grid = torch.cartesian_prod(line, line)
    for row, outcome in outcomes.items():
        lower, upper = problem.box.lower[row], problem.box.upper[row]
        with torch.no_grad():
            logits = network(lower + grid * (upper - lower))
        margins = margins_of(logits, problem.labels[row].expand(len(grid)))
        assert outcome.margin <= margins.min() + 1e-5
        if outcome.status is Status.VERIFIED:
            assert margins.min() > 0
        if outcome.status is Status.FALSIFIED:
            one = problem.select([row])
            assert is_counterexample(network, one.box, one.labels, outcome.witness[None]).all()
    assert Status.VERIFIED in {one.status for one in outcomes.values()} or eps > 0.1


@pytest.mark.parametrize("name", [name for name in VERIFIERS.names() if name != "clean"])
def test_a_box_of_one_point_is_never_falsified(name):
    network = mlp(0)
    problem = problem_for(network, eps=0.0)
    verdict = VERIFIERS.build(name)(network, problem)
    assert Status.FALSIFIED not in verdict.status
    if VERIFIERS[name].kind == "bound":
        assert set(verdict.status) == {Status.VERIFIED}
        with torch.no_grad():
            exact = margins_of(network(problem.images), problem.labels)
        torch.testing.assert_close(verdict.margins, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pgd", "attack"])
def test_attacks_find_real_counterexamples(name):
    network = mlp(0)
    problem = problem_for(network, eps=0.4)
    verdict = VERIFIERS.build(name)(network, problem)
    found = [row for row, status in enumerate(verdict.status) if status is Status.FALSIFIED]
    assert found
    with torch.no_grad():
        assert (network(verdict.witness[found]).argmax(1) != problem.labels[found]).all()
    assert problem.box[found].contains(verdict.witness[found]).all()


def test_an_images_noise_does_not_depend_on_its_batch():
    network = mlp(0)
    problem = problem_for(network, eps=0.4)
    whole = VERIFIERS.build("pgd")(network, problem).witness
    part = VERIFIERS.build("pgd")(network, problem.select([7, 2])).witness
    torch.testing.assert_close(part, whole[[7, 2]])


def test_misclassified_images_are_seen_by_no_later_stage():
    network = mlp(0)
    problem = problem_for(network, eps=0.0, count=4)
    wrong = Problem.of(network, problem.images, (problem.labels + 1) % 3, 0.0)
    outcomes = run("ibp", network, wrong)
    assert {one.status for one in outcomes.values()} == {Status.MISCLASSIFIED}
    assert {one.decided_by for one in outcomes.values()} == {"clean"}
    assert [one.prediction for one in outcomes.values()] == problem.labels.tolist()


def test_ties_and_nan_are_not_correct_predictions():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0] * 0, x[:, 0] * 0, x[:, 1] / x[:, 1] - 2], 1)  # 0, 0, -1 or NaN

    network = BoundedNetwork(Constant(), (2,), 3)
    problem = Problem.of(network, torch.tensor([[0.5, 0.5], [0.5, 0.0]]), torch.tensor([0, 0]), 0.1)
    assert VERIFIERS.build("clean")(network, problem).status == (Status.MISCLASSIFIED,) * 2


def test_two_bounds_together_verify_what_neither_does():
    """Margins (1, -1) then (-2, 3): the elementwise maximum (1, 3) is positive."""
    network = mlp(0)
    problem = problem_for(network, eps=0.1, count=1)
    first = verdict_of_bounds(problem, torch.tensor([[1.0, -1.0]]), 0.0)
    assert first.status == (Status.UNKNOWN,)
    second = verdict_of_bounds(problem.select([0], first.margins), torch.tensor([[-2.0, 3.0]]), 0.0)
    assert second.status == (Status.VERIFIED,)
    assert second.margins.tolist() == [[1.0, 3.0]]
    assert second.worst.tolist() == [1.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_verified(bad):
    problem = problem_for(mlp(0), eps=0.1, count=1)
    verdict = verdict_of_bounds(problem, torch.tensor([[1.0, bad]]), 0.0)
    assert verdict.status == (Status.UNKNOWN,)
    assert verdict.margins.tolist() == [[1.0, -torch.inf]]


def test_the_margin_must_exceed_the_tolerance():
    problem = problem_for(mlp(0), eps=0.1, count=3)
    margins = torch.tensor([[0.5, 1.0], [0.6, 1.0], [0.0, 1.0]])
    expected = (Status.UNKNOWN, Status.VERIFIED, Status.UNKNOWN)
    assert verdict_of_bounds(problem, margins, 0.5).status == expected
    assert verdict_of_bounds(problem, margins, 0.0).status[2] is Status.UNKNOWN  # zero is not positive


def test_a_nan_network_verifies_nothing():
    network = mlp(0)
    problem = problem_for(network, eps=0.01)
    network.model[2].weight.data[0, 0] = torch.nan
    for name in BOUNDS:
        verdict = VERIFIERS.build(name)(network, problem)
        assert set(verdict.status) == {Status.UNKNOWN}
        assert not verdict.margins.isnan().any()


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
        ("", None, "expected a name such as crown"),
        ("ibp,ibp", None, "bound 'ibp' is named twice"),
        ("ibp", {"crown": {}}, "options for bound 'crown', which does not run"),
        ("ibp", {"pgd": {"step": 3}}, "unknown key 'step'; did you mean 'steps'"),
        ("attack", {"attack": {"attack": "nothing"}}, "unknown attack 'nothing'"),
    ],
)
def test_mistakes_are_named(bound, options, message):
    with pytest.raises(UserError, match=message):
        build_stages(bound, options)


def test_a_stage_that_auto_lirpa_fails_on_is_named(monkeypatch):
    def fail(*_args, **_options):
        raise AssertionError("MaxPool")

    network = mlp(0)
    monkeypatch.setattr(Graph, "_compute", fail)
    with pytest.raises(UserError, match="bound 'crown': auto_LiRPA cannot .*: AssertionError: MaxPool"):
        Crown()(network, problem_for(network, 0.1))


def test_float64_networks_are_verified_in_float64():
    network = mlp(0).double()
    verdict = Ibp()(network, problem_for(network, 0.01))
    assert verdict.margins.dtype == torch.float64


def test_golden_margins_pass_through_unchanged(golden):
    verdict = Ibp()(golden.network(), Problem.of(golden.network(), golden.x, golden.labels, golden.eps))
    torch.testing.assert_close(verdict.margins, golden["A.eval.ibp_lb"], rtol=1e-4, atol=1e-4)


def test_stages_know_their_batch_sizes():
    cascade = Cascade(build_stages("crown"))
    assert cascade.chunk_size(CPU) == 256
    assert cascade.batch_size(cascade.stages[-1], CPU) == 1
    with pytest.raises(UserError, match="batch size: expected at least 1"):
        Cascade(build_stages("crown"), batch_size=0)


def sigmoid_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3))
    return BoundedNetwork(model, (1, 2, 2), 3).eval()


CONVOLUTIONS = {
    "same": (nn.Conv2d(1, 2, 3, padding="same"), (1, 4, 4), 32),
    "valid": (nn.Conv2d(1, 2, 3, padding="valid"), (1, 4, 4), 8),
    "even": (nn.Conv2d(1, 2, 2, padding="same"), (1, 4, 4), 32),
    "circular": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 4, 4), 32),
    "conv1d": (nn.Conv1d(2, 3, 3, padding="same"), (2, 6), 18),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 16),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown", "alpha-crown", "bab", "mip"])
def test_every_convolution_is_bounded_soundly_or_named(kind, name):
    torch.manual_seed(0)
    layer, shape, size = CONVOLUTIONS[kind]
    network = BoundedNetwork(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(size, 3)), shape, 3).eval()
    problem = problem_for(network, 0.02, count=3)
    try:
        verdict = VERIFIERS.build(name)(network, problem)
    except UserError as error:
        assert "layer '0'" in str(error) and "\n" not in str(error)
        assert kind not in ("same", "valid") and (name, kind) not in {
            ("ibp", "conv1d"),
            ("bab", "conv3d"),
            ("mip", "conv1d"),
        }
        return
    with torch.no_grad():
        lowest = torch.stack([margins_of(network(x), problem.labels) for x in samples(problem.box, 50)]).amin(0)
    assert (verdict.margins <= lowest + 1e-5).all()


def test_a_stage_that_cannot_handle_the_network_is_skipped_and_named(tmp_path):
    """Branch-and-bound splits ReLUs; IBP and CROWN of the same cascade still count."""
    network, x = sigmoid_network(), torch.rand(6, 1, 2, 2)
    labels = network(x).argmax(1)
    summary = verify(network, x, labels, 0.02, build_stages("bab,ibp,crown"), tmp_path, QUIET)
    assert "Sigmoid" in summary["skipped"]["bab"] or "sigmoid" in summary["skipped"]["bab"]
    assert summary["verified"]["count"] > 0
    assert "bab was skipped" in table_of(summary)
    assert "rounding was skipped: the tolerance alone stands for it: layer" in table_of(summary)


def test_a_network_that_nothing_can_bound_is_an_error(tmp_path):
    network, x = sigmoid_network(), torch.rand(2, 1, 2, 2)
    labels = network(x).argmax(1)
    with pytest.raises(UserError, match="(?i)sigmoid"):
        verify(network, x, labels, 0.5, build_stages("bab"), tmp_path, QUIET)


@pytest.mark.parametrize("model", [nn.Linear(4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))])
@pytest.mark.parametrize("bound", ["alpha-crown", "bab", "mip"])
def test_a_network_without_relus_is_bounded_exactly(model, bound):
    """min f_y - f_j over the ball = f_y(x) - f_j(x) - eps * |w_y - w_j|_1, for eps inside [0, 1]."""
    network = BoundedNetwork(model, (4,), 3).eval()
    x = torch.full((2, 4), 0.5) + torch.tensor([[0.1], [-0.2]])
    labels = network(x).argmax(1)
    logits, weight = network(x), list(model.parameters())[0]
    exact = torch.tensor([torch.inf, torch.inf])
    for other in range(3):
        margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        margin = margin - 0.05 * (weight[labels] - weight[other]).abs().sum(1)
        exact = torch.where(labels == other, exact, torch.minimum(exact, margin))
    verdict = VERIFIERS.build(bound)(network, Problem.of(network, x, labels, 0.05))
    for one, status, worst in zip(exact.tolist(), verdict.status, verdict.worst.tolist(), strict=True):
        assert (status is Status.VERIFIED) == (one > 1e-4)
        assert status is not Status.VERIFIED or worst == pytest.approx(one, abs=1.1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_crown_on_max_pooling_is_skipped_and_named_where_auto_lirpa_cannot(dtype):
    from expressive_losses.bounds import compat
    from expressive_losses.verify.evaluation import computing_in

    if str(compat.lirpa_version()) >= "0.4":
        pytest.skip("a limit of auto_LiRPA 0.3")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    network = BoundedNetwork(model, (1, 4, 4), 3).to(dtype).eval()
    x = torch.rand(5, 1, 4, 4, dtype=dtype)
    cascade = Cascade(build_stages("crown,alpha-crown", {"crown": {"tolerance": 1e9}}))
    with computing_in(dtype):
        list(cascade(network, Problem.of(network, x, network(x).argmax(1), 0.01)))
    assert "max pooling" in cascade.skipped["alpha-crown"]


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


class Unknown(nn.Module):
    """Has an operation that nothing here can bound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cumsum(self.first(x), 1))


class AlwaysDropping(Unknown):
    """Its dropout does not know eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.dropout(self.first(x)))


@pytest.mark.parametrize(
    "model, bound, words",
    [
        # which of the two, depends on the opset of the last ONNX export in this process, a global of torch's
        (Unknown, "ibp", "unsupported operation cumsum$|auto_LiRPA cannot bound this network"),
        (Unknown, "bab", "layer 'cumsum' .* not supported"),
        (AlwaysDropping, "ibp", "random also in eval mode"),
        (AlwaysDropping, "pgd", "random also in eval mode"),
    ],
)
def test_networks_that_cannot_be_bounded_are_named_in_one_line(model, bound, words, tmp_path, capfd, caplog):
    """auto_LiRPA's own dump of nodes stays away."""
    torch.manual_seed(0)
    network = BoundedNetwork(model(), (4,), 3).eval()
    x, labels = torch.rand(4, 4), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        labels = network(x).argmax(1)
    with pytest.raises(UserError, match=words):
        verify(network, x, labels, 0.01, build_stages(f"clean,{bound}"), tmp_path, QUIET)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_a_tolerance_that_is_not_safe_for_a_stage_is_refused():
    with pytest.raises(UserError, match="bound 'mip': a tolerance of 1e-06 is not safe.* --set mip.tolerance=0.0001"):
        build_stages("crown,mip", tolerance=1e-6)
    assert build_stages("crown,mip", {"mip": {"tolerance": 1e-4}}, tolerance=1e-6)[2].tolerance == 1e-6
