"""TensorFloat-32 is for training alone: evaluation and verification switch it off, and everything is put back."""

import pytest
import torch
from test_no_sync import trainer_of

from expressive_losses import experiment, updates
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.evaluate import accuracies
from expressive_losses.precision import exact_float32, training_precision
from expressive_losses.verify.evaluation import computing_in, evaluation_copy


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(False, True), (True, True), (False, False)], autouse=True)
def before(request):
    """Whatever the flags are, torch's default first: they are as they were afterwards."""
    former, benchmark = flags(), torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    assert (flags(), torch.backends.cudnn.benchmark) == (request.param, benchmark)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = former


def test_training_is_in_what_was_asked_for():
    for precision, allowed in (("float32", False), ("tf32", True)):
        with training_precision(precision):
            assert flags() == (allowed, allowed)
            assert torch.backends.cudnn.benchmark


def test_claims_are_in_full_float32_whatever_surrounds_them():
    for claims in (exact_float32(), computing_in(torch.float32)):
        with training_precision("tf32"), claims:
            assert flags() == (False, False)


def test_the_fast_path_is_compared_in_full_float32(tmp_path, monkeypatch):
    """TensorFloat-32 rounds folded weights otherwise than BatchNorm's own."""
    seen, forward = [], BoundedNetwork.forward

    def noted(network, x):
        seen.append(flags())
        return forward(network, x)

    network = trainer_of(tmp_path).network
    monkeypatch.setattr(BoundedNetwork, "forward", noted)
    evaluation_copy(network, "cpu", torch.float32)
    assert seen == [(False, False)] * 3


def test_training_begins_with_bounds_in_full_float32(tmp_path, monkeypatch):
    seen, bounds_of = [], BoundedNetwork.bounds_of

    def noted(*arguments, **options):
        seen.append(flags())
        return bounds_of(*arguments, **options)

    monkeypatch.setattr(BoundedNetwork, "bounds_of", noted)
    experiment.prepare(trainer_of(tmp_path).config, torch.device("cpu"))
    assert seen == [(False, False)]


def test_flags_are_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), training_precision("tf32"), exact_float32():
        raise ZeroDivisionError


def test_a_training_in_tf32_is_evaluated_in_float32(tmp_path, monkeypatch):
    seen = {}
    forward, bounds, gradient = BoundedNetwork.forward, BoundedNetwork.bounds, updates.forward_batch

    def noted(name, function):
        def call(*arguments, **options):
            seen[name] = flags()
            return function(*arguments, **options)

        return call

    trainer = trainer_of(tmp_path, "training.precision=tf32")
    monkeypatch.setattr(updates, "forward_batch", noted("training", gradient))
    trainer.step = trainer.steps - 1
    trainer.train_step(torch.arange(32), trainer.radii(trainer.step))
    monkeypatch.setattr(BoundedNetwork, "forward", noted("natural", forward))
    monkeypatch.setattr(BoundedNetwork, "bounds", noted("verified", bounds))
    accuracies(trainer.network, trainer.held_out, 0.1)
    assert seen == {"training": (True, True), "natural": (False, False), "verified": (False, False)}


def test_statistics_that_a_checkpoint_keeps_are_in_full_float32(tmp_path, monkeypatch):
    seen = []
    trainer = trainer_of(tmp_path, "training.precision=tf32")
    trainer.step = 1
    monkeypatch.setattr("expressive_losses.trainer.refresh_population_statistics", lambda *_: seen.append(flags()))
    with training_precision("tf32"):
        trainer._refresh()
    assert seen == [(False, False)]
