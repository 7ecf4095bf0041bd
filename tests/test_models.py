"""Every registered network builds, runs and counts as published; a user's own network is checked first."""

import pickle
import sys
import types

import pytest
import torch
from torch import nn

from expressive_losses.errors import UserError
from expressive_losses.models import Factory, check_output
from expressive_losses.registry import MODELS

REGISTERED = [name for name in MODELS.names() if name != "factory"]
SMALLER = {"cnn7": {"width": 4}, "cnn5": {"width": 4}, "wide_resnet": {"widen": 1}, "resnet": {"width": 4}}


def count(model, shape, classes=10):
    with torch.device("meta"):  # sizes only: no memory, no initialisation
        return sum(p.numel() for p in model.build(shape, classes).parameters())


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
def test_every_model_builds_and_is_finite_in_both_modes(name, shape):
    model = MODELS.build({"name": name, **SMALLER.get(name, {})})
    module = model.build(shape, 7)
    check_output(module, shape, 7, name)
    x = torch.rand(3, *shape)
    assert module.training
    assert torch.isfinite(module(x)).all()
    assert isinstance([layer for layer in module.modules() if not list(layer.children())][-1], nn.Linear)


@pytest.mark.parametrize("name", REGISTERED)
def test_every_model_goes_to_another_process(name):
    model = MODELS.build(name)
    assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.parametrize("name", REGISTERED)
def test_help_and_spec_of_every_model(name):
    model = MODELS.build(name)
    assert MODELS.help(name).endswith(".")
    assert MODELS.build(model.spec()) == model


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("dm_small", (3, 32, 32), 10, 470_918),  # paper "IBP", table 1: 471K, 1.2M, 17M on CIFAR-10
        ("dm_medium", (3, 32, 32), 10, 1_188_906),
        ("dm_large", (3, 32, 32), 10, 17_190_602),
        ("dm_small", (1, 28, 28), 10, 329_606),
        ("cnn_small", (1, 28, 28), 10, 166_702),
        ("cnn7", (3, 32, 32), 10, 17_192_650),
        ("cnn7", (1, 28, 28), 10, 13_259_338),
        ("wide_resnet", (3, 64, 64), 1000, 8_069_944),  # paper "IBP", section 4.2: 8M
    ],
)
def test_parameter_counts(name, shape, classes, parameters):
    assert count(MODELS.build(name), shape, classes) == parameters


@pytest.mark.parametrize(("name", "units"), [("dm_small", 8_308), ("dm_medium", 46_912), ("dm_large", 229_888)])
def test_hidden_units_of_the_dm_networks_on_cifar(name, units):
    """Paper "IBP", table 1: 8.3K, 47K and 230K; they settle the padding, which the table leaves out."""
    module, counted = MODELS.build(name).build((3, 32, 32), 10), []
    for layer in module:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _, inputs, output: counted.append(output[0].numel()))
    module(torch.rand(1, 3, 32, 32))
    assert sum(counted) == units


def test_cnn7_has_a_fifth_stride_at_64_pixels_only():
    strides = [
        [layer.stride[0] for layer in MODELS.build("cnn7").build((3, size, size), 10) if isinstance(layer, nn.Conv2d)]
        for size in (32, 64)
    ]
    assert strides == [[1, 1, 2, 1, 1], [1, 1, 2, 1, 2]]


def test_cnn_small_layout():
    """The layout that the golden weights of the published code are loaded into."""
    module = MODELS.build("cnn_small").build((1, 28, 28), 10)
    kinds = "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU Flatten Linear BatchNorm1d ReLU Linear"
    assert [type(layer).__name__ for layer in module] == kinds.split()
    assert (module[0].kernel_size, module[0].stride, module[0].padding) == ((4, 4), (2, 2), (1, 1))
    assert (module[7].in_features, module[7].out_features, module[10].out_features) == (1568, 100, 10)


@pytest.mark.parametrize("size", [8, 28, 32, 33])
@pytest.mark.parametrize("name", ["resnet", "wide_resnet", "cnn_tiny"])
def test_odd_and_small_images(name, size):
    module = MODELS.build({"name": name, **SMALLER.get(name, {})}).build((1, size, size), 4)
    check_output(module, (1, size, size), 4)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("dm_small", (1, 8, 8)), ("model_e", (1, 6, 6)), ("resnet", (1, 2, 2)), ("wide_resnet", (1, 1, 1))],
)
def test_too_small_images_are_refused(spec, shape):
    with pytest.raises(UserError, match=f"model '{spec}': images of shape .* are too small"):
        MODELS.build(spec).build(shape, 10)


def test_bad_depth_of_wide_resnet():
    with pytest.raises(UserError, match=r"depth must be 6n \+ 4 .* got 12"):
        MODELS.build({"name": "wide_resnet", "depth": 12}).build((3, 32, 32), 10)


def test_fields_are_checked():
    with pytest.raises(UserError, match="model 'cnn7': width: Input should be greater than 0, got 0"):
        MODELS.build({"name": "cnn7", "width": 0})
    with pytest.raises(UserError, match="unknown model 'cnn8'; did you mean 'cnn7'"):
        MODELS.build("cnn8")


# A user's own network.


class Own(nn.Module):
    def __init__(self, shape, classes, width=3):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("own_networks")
    module.Own = Own
    module.fixed = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    module.dropout = lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))
    module.two_outputs = lambda: Two()
    module.infinite = lambda: Infinite()
    module.not_a_module = lambda: 3
    module.constant = 3
    monkeypatch.setitem(sys.modules, "own_networks", module)


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Infinite(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] / 0


def test_factory_gets_shape_classes_and_its_own_arguments(own):
    model = MODELS.build({"name": "own_networks:Own", "width": 5})
    assert model == Factory(path="own_networks:Own", kwargs={"width": 5})
    assert MODELS.build(model.spec()) == model
    module = model.build((1, 2, 2), 3)
    assert module.width == 5
    assert module(torch.zeros(2, 1, 2, 2)).shape == (2, 3)
    assert module.training


def test_factory_without_arguments(own):
    assert isinstance(MODELS.build("own_networks:fixed").build((1, 2, 2), 2), nn.Sequential)


def test_import_path_of_a_model_plugin():
    model = MODELS.build({"name": "expressive_losses.models.mlp:Mlp", "hidden": [3]})
    assert model.build((1, 2, 2), 2)[1].out_features == 3
    with pytest.raises(UserError, match="model 'expressive_losses.models.mlp:Mlp': hidden.0: Input should be greater"):
        MODELS.build({"name": "expressive_losses.models.mlp:Mlp", "hidden": [0]}).build((1, 2, 2), 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "own_networks:fixed",
            r"must give logits of shape \(2, 3\), got \(2, 2\); make its last layer nn.Linear",
        ),
        ("own_networks:dropout", "layer '1' is dropout, which cannot be bounded"),
        ("own_networks:two_outputs", "must return one tensor of logits, got tuple"),
        ("own_networks:not_a_module", "must return a torch.nn.Module, got int"),
        ("own_networks:constant", "expected a function or class that returns an nn.Module, got 3"),
        ("own_networks:absent", "has no attribute 'absent'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ({"name": "own_networks:Own", "widht": 5}, "unexpected keyword argument 'widht'"),
    ],
)
def test_errors_of_a_factory_are_one_line(own, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        MODELS.build(spec).build((1, 2, 2), 3)
    assert "\n" not in str(caught.value)


def test_wrong_image_shape_and_infinite_logits(own):
    with pytest.raises(UserError, match=r"does not take images of shape \(1, 3, 3\) \(C, H, W\): mat1 and mat2"):
        MODELS.build("own_networks:fixed").build((1, 3, 3), 2)
    with pytest.raises(UserError, match="not finite"):
        MODELS.build("own_networks:infinite").build((1, 2, 2), 2)


def test_check_output_leaves_modes_and_statistics_alone():
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[1].eval()
    before = module[1].running_mean.clone()
    check_output(module, (1, 2, 2), 2)
    assert module.training and not module[1].training
    assert torch.equal(module[1].running_mean, before)
