"""Random networks: everything that the bounds claim to handle, in small."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from expressive_losses.bounds import BatchStatistics, BoundedNetwork, record_statistics, use_statistics
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.types import Box

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
#: How often each activation is chosen: ReLU is what branch-and-bound, MIP and the fast path are about.
WEIGHTS = (6, 1, 1, 1)
POOLS = {
    "average pooling": lambda: nn.AvgPool2d(2),
    "max pooling": lambda: nn.MaxPool2d(2),
    "max pooling, overlapping": lambda: nn.MaxPool2d(2, stride=1),
    "max pooling, padded": lambda: nn.MaxPool2d(3, stride=2, padding=1),
}
#: What passes a positive factor on.
SCALE_THROUGH = (nn.ReLU, nn.LeakyReLU, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten)
Maker = Callable[[], nn.Module]


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        return x + self.body(x)


#: What is wired otherwise than a chain: constants, and layers that are read several times.
WIRINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant added": lambda h: (h - 0.3).relu(),
    "subtracted from a constant": lambda h: 1 - h.relu(),
    "both signs": lambda h: torch.cat([h.relu(), (-h).relu()], 1),
    "beside its ReLU": lambda h: torch.cat([h, h.relu().tanh()], 1),
    "read twice": lambda h: h.relu() + h.tanh(),
}


class Wired(nn.Module):
    """A layer of no parameters that is no chain."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        """Return the wiring's function of x."""
        return WIRINGS[self.wiring](x)


@dataclass(frozen=True)
class Subject:
    """A network as a function of the image: in eval mode, or with the BatchNorm statistics of a batch.

    Attributes:
        features: what it is made of, for the table.
        statistics: of a training batch; ``None``: the running ones.
    """

    network: BoundedNetwork
    features: tuple[str, ...]
    statistics: BatchStatistics | None

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.network.mean.dtype

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits as the function that the bounds are about has them."""
        with use_statistics(self.network, self.statistics):
            return self.network(x)


def random_subject(seed: int, kind: str = "images") -> Subject:
    """Return the network number ``seed``.

    Args:
        kind: of its inputs: "images" (C, H, W), "rows" (C, W), or "vectors" of two numbers, for exhaustive grids;
            "wired images" and "wired vectors" are no chains of layers.
    """
    choose = random.Random(seed)
    torch.manual_seed(seed)
    activation = choose.choices(list(ACTIVATIONS), WEIGHTS)[0]
    shape = SHAPES[kind](choose)
    classes = choose.choice([2, 3, 4])
    features = [activation]
    module = nn.Sequential(*LAYERS[kind](choose, shape, activation, features))
    with torch.no_grad():
        width = module.eval()(torch.zeros(2, *shape)).shape[1]
    module.append(nn.Linear(width, classes))
    mean, std = (0.3,) * shape[0], tuple(0.3 + 0.2 * channel for channel in range(shape[0]))
    network = BoundedNetwork(module, shape, classes, mean, std, fast_chain=choose.random() < 0.7)
    features.append("fast path" if network._chain is not None else "auto_LiRPA")
    _randomize(network, choose)
    if choose.random() < 0.4:
        _train(network, choose)
        features.append("trained")
    if choose.random() < 0.7:
        _balance(network.eval())
    if choose.random() < 0.3 and _rescale(network, choose):
        features.append("rescaled")
    network = network.to(choose.choice([torch.float32, torch.float64])).eval()
    features.append(str(network.mean.dtype).removeprefix("torch."))
    return Subject(network, tuple(features), _statistics(network, choose, features))


def _of_vectors(choose: random.Random, shape: tuple[int, ...], activation: str, features: list[str]) -> list[nn.Module]:
    """Linear layers, some with BatchNorm."""
    layers: list[nn.Module] = []
    width = shape[0]
    for _ in range(choose.randint(1, 3)):
        hidden = choose.choice([4, 6, 8])
        layers.append(nn.Linear(width, hidden, bias=choose.random() < 0.8))
        if choose.random() < 0.4:
            layers.append(nn.BatchNorm1d(hidden))
            features.append("batch norm")
        layers.append(ACTIVATIONS[activation]())
        width = hidden
    if choose.random() < 0.3:
        layers += _twice(choose, lambda: nn.Linear(width, width), lambda: nn.BatchNorm1d(width), activation, features)
    features.append("linear")
    return layers


def _of_rows(choose: random.Random, shape: tuple[int, ...], activation: str, features: list[str]) -> list[nn.Module]:
    """Linear layers and BatchNorm on the rows of images without height, convolutions over them."""
    channels, width = shape
    hidden = choose.choice([3, channels])  # as many as channels: BatchNorm could take the one for the other
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    features.append("linear on rows")
    if choose.random() < 0.4:
        layers.append(nn.BatchNorm1d(channels))
        features.append("batch norm on rows")
    layers.append(ACTIVATIONS[activation]())
    if choose.random() < 0.4:
        out = choose.choice([2, 4])
        layers += [nn.Conv1d(channels, out, choose.choice([1, 3]), padding=1), nn.BatchNorm1d(out)]
        layers.append(ACTIVATIONS[activation]())
        features.append("convolution over rows")
    elif choose.random() < 0.4:
        layers += _twice(
            choose, lambda: nn.Linear(hidden, hidden), lambda: nn.BatchNorm1d(channels), activation, features
        )
    layers.append(nn.Flatten())
    return layers + _head(choose, activation)


def _of_wired_vectors(
    choose: random.Random, shape: tuple[int, ...], _activation: str, features: list[str]
) -> list[nn.Module]:
    """Linear layers with wirings between."""
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 2)):
        layers += [nn.LazyLinear(choose.choice([2, 4, 6])), _wired(choose, features)]
    return layers


def _of_wired_images(
    choose: random.Random, shape: tuple[int, ...], activation: str, features: list[str]
) -> list[nn.Module]:
    """Padded convolutions with wirings between, or a constant before the first."""
    layers: list[nn.Module] = [_wired(choose, features)] if choose.random() < 0.3 else []
    layers += [nn.LazyConv2d(2, 3, padding=1), _wired(choose, features), nn.LazyConv2d(2, 3, padding=1)]
    return [*layers, ACTIVATIONS[activation](), nn.Flatten(), *_head(choose, activation)]


def _wired(choose: random.Random, features: list[str]) -> Wired:
    wiring = choose.choice(list(WIRINGS))
    features.append(wiring)
    return Wired(wiring)


def _of_images(choose: random.Random, shape: tuple[int, ...], activation: str, features: list[str]) -> list[nn.Module]:
    """Convolutions with stride, padding and groups, BatchNorm, residual sums, pooling, repeated layers."""
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for _ in range(choose.randint(1, 2)):
        out, kernel = choose.choice([2, 4]), choose.choice([1, 2, 3])
        stride, padding = choose.choice([1, 1, 2]), choose.choice([0, 1])
        groups = 2 if channels % 2 == 0 and choose.random() < 0.3 else 1
        after = (side + 2 * padding - kernel) // stride + 1
        if after < 2:
            break
        bias = choose.random() < 0.7
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=bias))
        features.append("groups" if groups > 1 else "stride" if stride > 1 else "convolution")
        if choose.random() < 0.5:
            layers.append(nn.BatchNorm2d(out, affine=choose.random() < 0.8))
            features.append("batch norm")
        layers.append(ACTIVATIONS[activation]())
        channels, side = out, after
        if choose.random() < 0.2:
            body = [nn.Conv2d(channels, channels, 3, padding=1), ACTIVATIONS[activation]()]
            layers.append(Residual(nn.Sequential(*body)))
            features.append("residual")
    if choose.random() < 0.2:
        square = partial(nn.Conv2d, channels, channels, 3, padding=1)
        layers += _twice(choose, square, partial(nn.BatchNorm2d, channels), activation, features)
    if side >= 3 and choose.random() < 0.4:
        pool = choose.choice(list(POOLS))
        layers.append(POOLS[pool]())
        features.append(pool)
    return [*layers, nn.Flatten(), *_head(choose, activation)]


def _head(choose: random.Random, activation: str) -> list[nn.Module]:
    """Return a hidden linear layer, or none."""
    if choose.random() < 0.4:
        return []
    norm = [nn.BatchNorm1d(6)] if choose.random() < 0.3 else []
    return [nn.LazyLinear(6), *norm, ACTIVATIONS[activation]()]


def _twice(choose: random.Random, affine: Maker, norm: Maker, activation: str, features: list[str]) -> list[nn.Module]:
    """Return two blocks of the same shape that share some of their modules: each such module stands in two places."""
    makers = {"affine": affine, "batch norm": norm, "activation": ACTIVATIONS[activation]}
    if choose.random() < 0.5:
        del makers["batch norm"]
    shared = choose.sample(list(makers), choose.randint(1, len(makers)))
    features += [f"repeated {name}" for name in shared]
    first = {name: make() for name, make in makers.items()}
    second = {name: first[name] if name in shared else make() for name, make in makers.items()}
    return [*first.values(), *second.values()]


SHAPES: dict[str, Callable[[random.Random], tuple[int, ...]]] = {
    "images": lambda choose: (choose.choice([1, 2]), choose.choice([4, 5, 6]), choose.choice([4, 5])),
    "rows": lambda choose: (choose.choice([2, 3, 4]), choose.choice([2, 3, 4])),
    "vectors": lambda choose: (2,),
    "wired images": lambda choose: (choose.choice([1, 2]), 4, choose.choice([3, 4])),
    "wired vectors": lambda choose: (2,),
}
LAYERS = {
    "images": _of_images,
    "rows": _of_rows,
    "vectors": _of_vectors,
    "wired images": _of_wired_images,
    "wired vectors": _of_wired_vectors,
}


@torch.no_grad()
def _randomize(network: BoundedNetwork, choose: random.Random) -> None:
    """Weights of many sizes, BatchNorm as after some training, with scales of both signs."""
    scale = choose.choice([0.5, 1.0, 2.0])
    for parameter in network.parameters():
        parameter.mul_(scale)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.3, 2)
            if layer.weight is not None:
                layer.weight.uniform_(-1.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)


@torch.no_grad()
def _balance(network: BoundedNetwork) -> None:
    """Move the last layer's bias so that every class wins somewhere: else most random networks know one class only."""
    network.model[-1].bias -= network(torch.rand(64, *network.shape)).mean(0)


@torch.no_grad()
def _rescale(network: BoundedNetwork, choose: random.Random) -> bool:
    """Multiply layers by powers of two that the next ones take back: the same function, of neurons of other sizes.

    Returns:
        Whether there was a pair with nothing but what scales with its input between.
    """
    layers = [layer for layer in network.model if not isinstance(layer, SCALE_THROUGH)]
    done = False
    for first, second in pairwise(layers):
        alone = layers.count(first) == layers.count(second) == 1
        if not alone or getattr(first, "weight", None) is None or not isinstance(second, nn.Linear | nn.Conv2d):
            continue
        factor = 2.0 ** choose.choice([-70, -30, -10, 10, 30, 70])
        first.weight.mul_(factor)
        if first.bias is not None:
            first.bias.mul_(factor)
        second.weight.div_(factor)
        done = True
    return done


def _train(network: BoundedNetwork, choose: random.Random) -> None:
    """Some steps on random points with the labels of a random linear map, by IBP where there is a fast path."""
    x = torch.rand(32, *network.shape)
    labels = (x.flatten(1) @ torch.randn(x[0].numel(), network.classes)).argmax(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    verified = network._chain is not None and choose.random() < 0.5
    network.train()
    for _ in range(25):
        optimizer.zero_grad()
        if verified:
            network(x)  # the running statistics
            loss = verified_cross_entropy(network.margins(Box.around(x, 0.03), labels))
        else:
            loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()


def _statistics(network: BoundedNetwork, choose: random.Random, features: list[str]) -> BatchStatistics | None:
    """Return the statistics of a clean or of an attacked batch (the policies of training); none: the running ones."""
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        return None
    policy = choose.choice(["running", "clean", "adversarial"])
    features.append(f"{policy} statistics")
    if policy == "running":
        return None
    x = torch.rand(16, *network.shape, dtype=network.mean.dtype)
    x = x if policy == "clean" else (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
    with torch.no_grad(), record_statistics(network) as statistics:
        network.train()(x)
    network.eval()
    return {name: (mean.detach(), variance.detach()) for name, (mean, variance) in statistics.items()}
