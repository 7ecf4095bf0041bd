"""BatchNorm statistics as values: recorded in one forward pass, used in another pass or in a bound.

With BatchNorm, which batch the statistics come from changes every bound (the published codes differ here). So they are
passed explicitly, never read back from a module's hidden state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

#: (mean, biased variance) of the input of each BatchNorm layer, by the layer's qualified name; shapes (C,).
BatchStatistics = Mapping[str, tuple[Tensor, Tensor]]


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers by qualified name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance per channel of (B, C) or (B, C, ...), each (C,).

    The sums are arranged as a CPU does them fast: one reduction over all but the channels would take 15 times as long.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean = x.mean(0)
        return mean, (x - mean).square().mean(0)
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    mean = x.mean(2).mean(0)
    squared = (x - mean[:, None]).square()
    return mean, squared.mean(2).mean(0)


@torch.no_grad()
def update_running(norm: _BatchNorm, statistics: tuple[Tensor, Tensor], count: int) -> None:
    """Move a layer's running statistics towards those of a batch, as BatchNorm in train mode does.

    Args:
        norm: whose momentum is a number.
        statistics: mean and biased variance, (C,) each.
        count: of values a channel: the running variance is the unbiased one.
    """
    mean, variance = statistics
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / max(count - 1, 1)), norm.momentum)


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
    as they are.

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
