"""Networks that a stage cannot bound: named in one line, skipped, or refused; never bounded wrongly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from verifying import QUIET, mlp, problem_for, samples

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.lirpa import Graph
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.types import margins_of
from expressive_losses.verify import (
    Cascade,
    Problem,
    Status,
    build_stages,
    table_of,
    verify,
)
from expressive_losses.verify.incomplete import Crown


def test_a_stage_that_auto_lirpa_fails_on_is_named(monkeypatch):
    def fail(*_args, **_options):
        raise AssertionError("MaxPool")

    network = mlp(0)
    monkeypatch.setattr(Graph, "_compute", fail)
    with pytest.raises(UserError, match="bound 'crown': auto_LiRPA cannot .*: AssertionError: MaxPool"):
        Crown()(network, problem_for(network, 0.1))


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


class Mixing(Unknown):
    """Takes a mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last((hidden - hidden.mean(0, keepdim=True)).relu())


@pytest.mark.parametrize(
    "model, bound, words",
    [
        # which of the two, depends on the opset of the last ONNX export in this process, a global of torch's
        (Unknown, "ibp", "unsupported operation cumsum$|auto_LiRPA cannot bound this network"),
        (Unknown, "bab", "layer 'cumsum' .* not supported"),
        (AlwaysDropping, "ibp", "random also in eval mode"),
        (AlwaysDropping, "pgd", "random also in eval mode"),
        (Mixing, "ibp", "depends on the images beside it"),
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
