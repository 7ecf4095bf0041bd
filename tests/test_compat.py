"""auto_LiRPA on current torch: each repair of bounds/compat.py has a test that fails without it."""

import copy
import subprocess
import sys

import pytest
import torch
from packaging.version import Version
from torch import nn

from expressive_losses.bounds import compat

METHODS = ("IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized")


class ConvNet(nn.Module):
    """Reads its batch size with x.size(0), which a careless trace replaces by that of the dummy input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(64, 20)
        self.last = nn.Linear(20, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.last(torch.relu(self.hidden(x.view(x.size(0), -1))))


def conv_net():
    torch.manual_seed(0)
    net = ConvNet()
    net(torch.rand(64, 1, 8, 8))  # running statistics that are not 0 and 1
    return net.eval()


def mlp(width=30, bias=True):
    torch.manual_seed(1)
    layers = [nn.Linear(6, width, bias), nn.ReLU(), nn.Linear(width, width, bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3, bias)).eval()


def bounded(net, *shape, dummy_batch=1):
    bounded_net = compat.load().BoundedModule(net, torch.zeros(dummy_batch, *shape))
    bounded_net.eval()
    return bounded_net


def lower_bounds(bounded_net, x, eps, method, **options):
    lirpa = compat.load()
    region = lirpa.PerturbationLpNorm(norm=float("inf"), eps=eps)
    result = bounded_net.compute_bounds(
        x=(lirpa.BoundedTensor(x, region),), method=method, bound_upper=False, **options
    )
    return result[0].detach()


def crown_and_alpha_crown(net, x, eps):
    bounded_net = bounded(net, *x.shape[1:])
    return [lower_bounds(bounded_net, x, eps, method) for method in ("CROWN", "CROWN-Optimized")]


def operators():
    compat.load()
    return sys.modules["auto_LiRPA.bound_ops"]


def run_python(code, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


# ------------------------------------------------------------------------------------------------- importing

IMPORT_AND_COMPARE = """
import logging, sys, warnings
import numpy, torch, torch.onnx.symbolic_helper as helper, torch.onnx.utils
from expressive_losses.bounds import compat

def state():
    stubs = [name for name in sys.modules if name.startswith("numpy.lib.array")]
    root = logging.getLogger()
    return dict(handlers=list(root.handlers), level=root.level, filters=list(warnings.filters), stubs=stubs,
                opset=hasattr(helper, "_set_opset_version"), node=hasattr(torch._C.Node, "__getitem__"),
                exporter=dict(vars(compat._exporter_globals())), handler=warnings.showwarning)

warnings.simplefilter("error")
logging.getLogger().setLevel(logging.ERROR)
before = state()
lirpa = compat.load()
assert compat.load() is lirpa
after = state()
assert before == after, (before, after)

if compat.lirpa_version() < compat.Version("0.4"):  # 0.7 changes one setting of the exporter itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lirpa.BoundedModule(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    after = state()
    assert before == after, (before, after)
"""


def test_import_and_tracing_leave_no_trace():
    result = run_python(IMPORT_AND_COMPARE)
    assert (result.stdout, result.stderr) == ("", "")


WITHOUT = """
import sys
from expressive_losses.bounds import compat
from expressive_losses.errors import UserError

missing = sys.argv[1]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for attempt in range(2):  # the second attempt must not stumble over what the first left behind
    try:
        compat.load()
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "missing, said, typed",
    [
        ("auto_LiRPA", "is not installed", "pip install --no-deps auto_LiRPA==0.3"),
        ("appdirs", "cannot be imported (No module named 'appdirs')", "pip install appdirs"),
        ("auto_LiRPA.patches", "cannot be imported", "pip install --no-deps auto_LiRPA==0.3"),
    ],
)
def test_missing_or_unusable_auto_lirpa_says_what_to_type(missing, said, typed):
    first, second = run_python(WITHOUT, missing).stdout.splitlines()  # one line each
    assert first == second
    assert "auto_LiRPA" in first and said in first
    assert "make install" in first and typed in first


def test_folder_named_like_auto_lirpa_is_not_taken_for_it(tmp_path):
    (tmp_path / "auto_LiRPA").mkdir()
    code = WITHOUT.replace(
        "sys.meta_path.insert(0, Blocker())",
        "from importlib.machinery import PathFinder\n"
        "class Stray:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return PathFinder.find_spec(name, [sys.argv[1]]) if name == 'auto_LiRPA' else None\n"
        "sys.meta_path.insert(0, Stray())",
    )
    first, second = run_python(code, str(tmp_path)).stdout.splitlines()
    assert first == second
    assert "has no __version__ and no BoundedModule" in first and "make install" in first


def test_version_is_comparable():
    assert compat.lirpa_version() == Version(compat.load().__version__)
    assert compat.lirpa_version() >= Version("0.3")


# --------------------------------------------------------------------------------------------------- tracing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dummy_batch", [1, 2])
def test_bounds_are_sound_at_another_batch_size_than_the_dummys(method, dummy_batch):
    net, eps = conv_net(), 0.1
    x = torch.rand(5, 1, 8, 8)
    bounded_net = bounded(net, 1, 8, 8, dummy_batch=dummy_batch)
    torch.testing.assert_close(bounded_net(x), net(x))

    lower = lower_bounds(bounded_net, x, eps, method)

    corners = x + eps * torch.randint(0, 2, (200, 5, 1, 8, 8)).mul(2).sub(1)
    outputs = net(corners.flatten(0, 1)).view(200, 5, 3)
    assert lower.shape == (5, 3)
    assert (lower <= outputs.amin(0) + 1e-5).all()
    # Each image's bounds are its own, whatever else is in the batch.
    alone = lower_bounds(bounded_net, x[2:3], eps, method)
    torch.testing.assert_close(lower[2:3], alone, rtol=1e-3, atol=1e-4)


def test_network_of_one_layer_has_exact_bounds():
    """min over |d| <= eps of w.(x + d) + b  =  w.x + b - eps |w|_1"""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.rand(2, 4)
    exact = layer(x) - 0.1 * layer.weight.abs().sum(1)
    for method in ("IBP", "CROWN"):
        torch.testing.assert_close(lower_bounds(bounded(layer, 4), x, 0.1, method), exact.detach())


class Twice(torch.autograd.Function):
    """An operator of the user's own, for which the user registers a bound."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x


class NamedTwice(Twice):
    @staticmethod
    def symbolic(g, x):
        return g.op("compat::Twice", x)


@pytest.mark.parametrize("function, name", [(NamedTwice, "compat::Twice"), (Twice, "prim::PythonOp")])
def test_custom_operator_stays_one_node(function, name):
    class Net(nn.Module):
        def forward(self, x):
            return function.apply(x + 1)

    class BoundTwice(operators().Bound):
        def forward(self, x):
            return 2 * x

        def interval_propagate(self, *v):
            return 2 * v[0][0], 2 * v[0][1]

    lirpa = compat.load()
    lirpa.register_custom_op(name, BoundTwice)
    try:
        bounded_net = bounded(Net(), 4)
        assert any(isinstance(node, BoundTwice) for node in bounded_net._modules.values())
        x = torch.rand(3, 4)
        torch.testing.assert_close(lower_bounds(bounded_net, x, 0.1, "IBP"), 2 * (x + 0.9))
    finally:
        lirpa.unregister_custom_op(name)


# ------------------------------------------------------------------------------------------------- nn.Module


@pytest.mark.parametrize("remove_duplicate", [True, False])
def test_parameters_are_those_of_the_network(remove_duplicate):
    net = conv_net()
    bounded_net = bounded(net, 1, 8, 8)
    own = dict(net.named_parameters())
    seen = dict(bounded_net.named_parameters(remove_duplicate=remove_duplicate))
    assert seen.keys() == own.keys()
    assert all(seen[name] is own[name] for name in own)
    assert len(list(bounded_net.parameters())) == len(own)


def test_register_parameter():
    bounded_net = bounded(mlp(), 6)
    bounded_net.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    assert "extra" in dict(bounded_net.named_parameters())


def test_deepcopy_after_bounds_gives_an_independent_network():
    net, x = conv_net(), torch.rand(3, 1, 8, 8)
    bounded_net = bounded(net, 1, 8, 8)
    lower = lower_bounds(bounded_net, x, 0.1, "CROWN-Optimized")
    lower = lower_bounds(bounded_net, x, 0.1, "CROWN")
    twin = copy.deepcopy(bounded_net)
    with torch.no_grad():
        net.last.bias.add_(1)
    torch.testing.assert_close(lower_bounds(twin, x, 0.1, "CROWN"), lower)
    torch.testing.assert_close(lower_bounds(bounded_net, x, 0.1, "CROWN"), lower + 1)


# ----------------------------------------------------------------------------------------------- alpha-CROWN


def test_alpha_crown_is_strictly_tighter_than_crown():
    crown, alpha = crown_and_alpha_crown(mlp(), torch.rand(4, 6), 0.3)
    assert (alpha >= crown - 1e-5).all()
    assert (alpha > crown + 1e-3).any(1).all()


def test_alpha_crown_on_a_layer_that_is_almost_all_unstable():
    """Without biases every hidden neuron is 0 at the origin, so unstable around it. One of 30 is not."""
    net, x = mlp(bias=False), torch.zeros(2, 6)
    net[0].bias = nn.Parameter(torch.zeros(30).index_fill(0, torch.tensor([3]), 100.0))
    net[2].weight.data[:, 3] = 0
    bounded_net = bounded(net, 6)
    crown = lower_bounds(bounded_net, x, 0.5, "CROWN")
    inputs = bounded_net.relus[0].inputs[0]
    assert 0.9 < ((inputs.lower < 0) & (inputs.upper > 0)).float().mean() < 1
    alpha = lower_bounds(bounded_net, x, 0.5, "CROWN-Optimized")
    assert (alpha >= crown - 1e-5).all() and (alpha > crown + 1e-3).any()


class ClampOfTorch214(torch.autograd.Function):
    """clamp with gradient 0 at its limits."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.inside = (x > low) & (x < high)
        return x.detach().clone().clamp_(low, high)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.inside, None, None


@pytest.fixture
def clamp_of_torch_214(monkeypatch):
    def clamp(x, min=None, max=None):  # noqa: A002 (torch's names)
        low = -float("inf") if min is None else min
        return ClampOfTorch214.apply(x, low, float("inf") if max is None else max)

    monkeypatch.setattr(torch, "clamp", clamp)


def original_mask(relu):
    """The function as auto_LiRPA has it, also where load() has replaced it."""
    mask = relu._relu_mask_alpha
    return mask.__closure__[0].cell_contents if mask.__module__ == compat.__name__ else mask


def test_alpha_moves_whatever_gradient_clamp_has_at_its_limits(clamp_of_torch_214, monkeypatch):
    relu = operators().BoundRelu
    mask = original_mask(relu)
    net, x = mlp(), torch.rand(4, 6)
    assert not compat._clamp_passes_gradient_at_limits()

    monkeypatch.setattr(relu, "_relu_mask_alpha", staticmethod(mask))
    crown, alpha = crown_and_alpha_crown(net, x, 0.3)
    torch.testing.assert_close(alpha, crown)  # the defect: alpha-CROWN is CROWN

    monkeypatch.setattr(relu, "_relu_mask_alpha", staticmethod(compat._with_gradient_at_limits(mask)))
    crown, alpha = crown_and_alpha_crown(net, x, 0.3)
    assert (alpha > crown + 1e-3).any(1).all()


def test_repaired_slopes_have_the_values_and_gradients_of_the_old_clamp():
    """Neurons: off, on, unstable with alpha = 0, 0.5, 1, and above and below the limits."""
    lower = torch.tensor([[-2.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]])
    upper = torch.tensor([[-1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    alpha = torch.tensor([[0.3, 0.3, 0.0, 0.5, 1.0, 1.5, -0.5]], requires_grad=True)
    mask = original_mask(operators().BoundRelu)
    slope, nothing, all_off = compat._with_gradient_at_limits(mask)(lower, upper, alpha, None)
    assert nothing is None and not all_off
    assert slope.tolist() == [[0.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0]]
    (gradient,) = torch.autograd.grad(slope.sum(), alpha)
    assert gradient.tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]]


# ----------------------------------------------------------------------------------------------- torchvision

IMPORT_TORCHVISION = """
import sys
from expressive_losses.data.torchvision_compat import load_torchvision
from expressive_losses.errors import UserError
if sys.argv[1] == "without":
    sys.modules["torchvision"] = None
    try:
        load_torchvision()
    except UserError as error:
        print(error)
else:
    torchvision = load_torchvision()
    assert load_torchvision() is torchvision
    import torch, torchvision.datasets, torchvision.transforms.v2 as transforms
    assert torchvision.datasets.MNIST and transforms.Resize(4)(torch.rand(1, 8, 8)).shape == (1, 4, 4)
"""


def test_torchvision_imports_beside_this_torch():
    run_python(IMPORT_TORCHVISION, "with")


def test_missing_torchvision_says_what_to_type():
    (line,) = run_python(IMPORT_TORCHVISION, "without").stdout.splitlines()
    assert "torchvision is not installed" in line and "make install" in line
