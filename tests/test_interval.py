"""The fast interval path equals auto_LiRPA's: margins, hidden bounds, gradients, on every model that it takes."""

import pytest
import torch
from instances import CLASSES, INSTANCES, data, instance
from torch import nn

from expressive_losses.bounds import BoundedNetwork, record_statistics
from expressive_losses.bounds.chain import chain_of
from expressive_losses.errors import UnsupportedNetwork
from expressive_losses.types import Box, margins_of

CHAINS = [name for name in INSTANCES if "resnet" not in name]


def both(name: str) -> tuple[BoundedNetwork, BoundedNetwork]:
    """The network with the fast path, and one over the same module without."""
    fast = instance(name)
    mean, std = fast.mean.flatten().tolist(), fast.std.flatten().tolist()
    slow = BoundedNetwork(fast.model, fast.shape, CLASSES, mean, std, fast_chain=False)
    assert fast._chain is not None
    assert slow._chain is None
    return fast, slow.eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_equals_auto_lirpa_with_gradients(name, training):
    fast, slow = both(name)
    x, labels = data(fast, size=6)
    statistics = None
    box = Box.around(x, 0.05)
    gradients, results = [], []
    for network in (fast, slow):
        if training:
            network.train()
            with record_statistics(network) as statistics:
                network(x)
        network.zero_grad()
        bounds = network.bounds(box, labels, "ibp", statistics)
        widths = sum(hidden.half_width.mean() for hidden in bounds.relu_inputs)
        (bounds.margins.mean() + widths).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        results.append(bounds)
    assert len(results[0].relu_inputs) == len(results[1].relu_inputs)
    torch.testing.assert_close(results[0].margins, results[1].margins, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(results[0].relu_inputs, results[1].relu_inputs, strict=True):
        torch.testing.assert_close(ours.lower, theirs.lower, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.upper, theirs.upper, rtol=1e-4, atol=1e-5)
    # the bias before a BatchNorm has gradient 0 up to rounding: compare on the scale of the largest gradient
    scale = max(float(gradient.abs().max()) for gradient in gradients[1])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4)],
        [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)],
        [nn.Flatten(), nn.Linear(16, 4), nn.ReLU()],
        [nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)],
        [nn.Flatten(0), nn.Linear(16, 4)],
        [nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)],
    ],
    ids=["sigmoid", "norm after relu", "ends in relu", "circular padding", "flattens the batch", "starts with relu"],
)
def test_whatever_is_no_chain_goes_to_auto_lirpa(layers):
    assert chain_of(nn.Sequential(*layers)) is None


def test_unusual_convolutions_and_layers_without_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 6, bias=False),
        nn.Linear(6, CLASSES, bias=False),
    )
    x, labels = torch.rand(3, 2, 8, 8), torch.tensor([0, 1, 3])
    box = Box.around(x, 0.1)
    fast, slow = (BoundedNetwork(model, (2, 8, 8), CLASSES, fast_chain=flag).eval() for flag in (True, False))
    assert fast._chain is not None
    torch.testing.assert_close(fast.margins(box, labels), slow.margins(box, labels), rtol=1e-4, atol=1e-5)


def repeated_relu():
    relu = nn.ReLU()
    return [nn.Flatten(), nn.Linear(16, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, CLASSES)]


def repeated_linear():
    linear = nn.Linear(8, 8)
    return [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), linear, nn.ReLU(), linear, nn.ReLU(), nn.Linear(8, CLASSES)]


def repeated_norm():
    norm = nn.BatchNorm1d(8)
    layers = [nn.Flatten(), nn.Linear(16, 8), norm, nn.ReLU(), nn.Linear(8, 8), norm, nn.ReLU(), nn.Linear(8, CLASSES)]
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    return layers


def norm_of_rows():
    norm = nn.BatchNorm1d(4)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.2, 2)
    return [nn.Flatten(1, 2), nn.Linear(4, 4), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)]


@pytest.mark.parametrize("make", [repeated_relu, repeated_linear, repeated_norm, norm_of_rows])
@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
def test_layers_in_two_places_and_norms_of_rows_are_bounded_soundly(make, method):
    """torch lists a module that stands twice in a Sequential once; BatchNorm1d of rows takes another dimension."""
    torch.manual_seed(0)
    network = BoundedNetwork(nn.Sequential(*make()), (1, 4, 4), CLASSES).eval()
    x, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % CLASSES
    box = Box.around(x, 0.1)
    try:
        margins = network.margins(box, labels, method)
    except UnsupportedNetwork:
        assert make is norm_of_rows  # auto_LiRPA 0.3 has no BatchNorm over rows
        return
    for _ in range(300):
        reached = margins_of(network(box.sample()), labels)
        assert (reached >= margins - 1e-5).all()


@pytest.mark.parametrize("change", ["hook", "layer", "forward", "parameters"])
@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_a_network_changed_after_its_first_bounds_is_bounded_as_it_is(change, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    network = BoundedNetwork(model, (1, 4, 4), CLASSES).eval()
    x, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    point = Box(x, x)
    network.margins(point, labels, method)
    if change == "hook":
        model[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    elif change == "layer":
        model[1] = nn.Linear(16, 8)
    elif change == "forward":
        model[1].forward = lambda x: 3 * nn.functional.linear(x, model[1].weight)
    else:
        model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)
    if change in ("hook", "forward"):
        network._graphs.clear()  # traced once: a graph does not see what changes inside of a layer's own code
    try:
        margins = network.margins(point, labels, method)
    except UnsupportedNetwork:
        assert change == "forward"  # auto_LiRPA traces a copy, whose parameters such a function does not use
        return
    torch.testing.assert_close(margins, margins_of(network(x), labels))


class Branches(nn.Module):
    """Another function where the image is bright."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x):
        y = self.linear(x.flatten(1))
        return 2 * y if x.sum() > 10 else y


def test_a_branch_on_values_is_refused():
    network = BoundedNetwork(Branches(), (1, 4, 4), CLASSES).eval()
    with pytest.raises(UnsupportedNetwork, match="branches on a tensor's values"):
        network.margins(Box.around(torch.rand(1, 1, 4, 4), 0.1), torch.tensor([0]))


@pytest.mark.parametrize("stride, chain", [((1, 3), False), ((3, 1), True), ((2, 2), True)])
def test_one_channel_with_a_larger_stride_across_is_no_chain(stride, chain):
    """torch 2.13 convolves such images wrongly with channels last where the output is one pixel wide (AVX-512)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, (3, 7), stride), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(4, 1, 28, 7)
    model(x)
    network = BoundedNetwork(model, (1, 28, 7), 2).eval()
    assert (network._chain is not None) == chain
    with network.frozen() as logits:
        torch.testing.assert_close(logits(x), network(x))
    found = network.bounds(Box.around(x, 0.0), network(x).argmax(1), "ibp").margins
    torch.testing.assert_close(found, margins_of(network(x), network(x).argmax(1)), rtol=1e-4, atol=1e-5)
