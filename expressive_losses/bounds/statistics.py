"""BatchNorm statistics as values: recorded in one forward pass, used in another pass or in a bound.

With BatchNorm, which batch the statistics come from changes every bound (the published codes differ here). So they are
passed explicitly, never read back from a module's hidden state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expressive_losses import distributed
from expressive_losses.bounds.kernels import batch_norm, batch_statistics

#: (mean, biased variance) of the input of each BatchNorm layer, by the layer's qualified name; shapes (C,).
BatchStatistics = Mapping[str, tuple[Tensor, Tensor]]


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers by qualified name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


@torch.no_grad()
def update_running(norm: _BatchNorm, statistics: tuple[Tensor, Tensor], count: int) -> None:
    """Move a layer's running statistics towards those of a batch, as BatchNorm in train mode does.

    Args:
        norm: a layer with running statistics; momentum ``None`` is the average over the batches so far.
        statistics: mean and biased variance, (C,) each.
        count: of values a channel: the running variance is the unbiased one.
    """
    mean, variance = statistics
    norm.num_batches_tracked.add_(1)
    share = norm.num_batches_tracked.to(mean.dtype).reciprocal() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance * (count / max(count - 1, 1)), share)


def train_norm(norm: _BatchNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return what a BatchNorm layer in train mode puts out, and the mean and biased variance of its input, (C,) each.

    All with gradient, and of the whole batch where several processes share it. Running statistics are updated.

    Args:
        norm: a layer with running statistics.
        x: (B, C, ...).
    """
    y, statistics = batch_norm(x, norm.weight, norm.bias, norm.eps)
    update_running(norm, statistics, distributed.whole_count(x.numel() // x.shape[1]))
    return y, statistics


@contextmanager
def record_statistics(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect the batch statistics of every BatchNorm layer during forward passes inside the context.

    Gradients flow through what is collected, as they do in the published bounds (mean over batch and space,
    biased variance). A layer used twice keeps its last use.
    """
    collected: dict[str, tuple[Tensor, Tensor]] = {}

    def recorder(name: str):
        def record(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            collected[name] = batch_statistics(inputs[0])

        return record

    hooks = [layer.register_forward_pre_hook(recorder(name)) for name, layer in batch_norms(module).items()]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def share_statistics(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect as :func:`record_statistics` does, but over all processes that share the batch.

    The layers, in train mode, compute with these statistics themselves, and their running ones follow them.

    Args:
        module: whose BatchNorm layers are torch's own, see :func:`own_forwards`.
    """
    collected: dict[str, tuple[Tensor, Tensor]] = {}

    def sharing(name: str, layer: _BatchNorm):
        def forward(x: Tensor) -> Tensor:
            y, collected[name] = train_norm(layer, x)
            return y

        return forward

    layers = batch_norms(module)
    for name, layer in layers.items():
        layer.forward = sharing(name, layer)
    try:
        yield collected
    finally:
        for layer in layers.values():
            del layer.forward


def own_forwards(module: nn.Module) -> list[str]:
    """Return the BatchNorm layers that may compute something else than torch's, by qualified name."""
    layers = batch_norms(module).items()
    return [name for name, x in layers if type(x).forward is not _BatchNorm.forward or "forward" in vars(x)]


@contextmanager
def use_statistics(module: nn.Module, statistics: BatchStatistics | None) -> Iterator[None]:
    """Evaluate BatchNorm layers with given statistics instead of their running ones; ``None`` means the running ones.

    The module is in eval mode inside the context and back in its former mode after it. No gradient flows into
    the statistics: this is for attacks and for frozen statistics.
    """
    layers = batch_norms(module)
    training = module.training
    kept = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    module.eval()
    try:
        for name, (mean, variance) in (statistics or {}).items():
            layers[name].running_mean, layers[name].running_var = mean.detach(), variance.detach()
        yield
    finally:
        for name, (mean, variance) in kept.items():
            layers[name].running_mean, layers[name].running_var = mean, variance
        module.train(training)


@torch.no_grad()
def refresh_population_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics to the averages over batches of clean images, the layers seen in train mode (CTBench).

    Running statistics are a moving average that lags behind the weights; this recomputes them for the weights
    as they are. Where several processes train, each hands in its own batches and gets the average over all of them: the
    sum over processes of (number of batches) x (average over these), by the number of all.

    Args:
        batches: images (B, *shape).
    """
    layers = batch_norms(module)
    if not layers:
        return
    momenta = {name: layer.momentum for name, layer in layers.items()}
    training = module.training
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    module.train()
    for x in batches:
        module(x)
    for name, layer in layers.items():
        layer.momentum = momenta[name]
    module.train(training)
    if distributed.processes() > 1:
        _average_over_processes(layers.values())


def _average_over_processes(layers: Collection[_BatchNorm]) -> None:
    """Replace averages over each process's batches by those over all batches, in one message."""
    for layer in layers:
        layer.running_mean.mul_(layer.num_batches_tracked)
        layer.running_var.mul_(layer.num_batches_tracked)
    distributed.add_up([
        buffer for layer in layers for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    ])  # fmt: skip
    for layer in layers:
        count = layer.num_batches_tracked.clamp(min=1)
        layer.running_mean.div_(count)
        layer.running_var.div_(count)
        layer.running_var.add_(layer.num_batches_tracked == 0)  # a layer that no image passes: 1, as it starts
