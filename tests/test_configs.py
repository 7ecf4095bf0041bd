"""Every config of the repository: it loads, its network can be built, and it does a step on synthetic images."""

from pathlib import Path

import pytest
import torch

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config, load
from expressive_losses.registry import MODELS
from expressive_losses.schedules import Clock
from expressive_losses.step import Radii, forward_batch

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml"))
RECIPES = [path for path in FILES if not path.stem.startswith("base")]
IMAGES = {
    "digits": 1437,
    "mnist": 60000,
    "cifar10": 50000,
    "svhn": 73257,
    "tinyimagenet": 100000,
    "imagenet64": 1281167,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def radii_at(config: Config, step: int, clock: Clock) -> Radii:
    """The radii of a step, as the trainer computes them."""
    eps = config.eps
    full, fraction = float(eps.target) * eps.train_multiplier, eps.schedule.fraction(step, clock)
    attacked = full * eps.attack_factor * eps.schedule.attack_fraction(step, clock)
    return Radii(full * fraction, attacked, fraction, step, clock, eps.schedule.end(clock))


def small(config: Config) -> BoundedNetwork:
    """A network of a few weights for the images and classes of the config's data set."""
    shape, classes = type(config.data).shape, type(config.data).classes
    model = MODELS.build({"name": "cnn_tiny", "width": 2, "hidden": 4})
    return BoundedNetwork(model.build(shape, classes), shape, classes, config.data.mean, config.data.std)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_config_does_a_step_in_its_ramp_and_after_it(path):
    torch.manual_seed(0)
    config = load(path)
    with torch.device("meta"):
        config.model.build(type(config.data).shape, type(config.data).classes)
    clock = Clock(IMAGES[config.data.name] // config.training.batch_size, config.training.epochs)
    end = config.eps.schedule.end(clock)
    assert end < clock.steps(1, "run"), "the ramp does not end"
    network = small(config)
    x, labels = torch.rand(2, *network.shape), torch.randint(network.classes, (2,))
    parameters = list(network.parameters())
    memory = config.method.memory(parameters)
    for step in (max(0, end - clock.steps_per_epoch // 2), end):
        radii = radii_at(config, step, clock)
        batch, terms = forward_batch(network, config.method, config.attack, x, labels, radii, config.training)
        terms |= config.method.backward(batch, terms, parameters, memory)
        assert all(torch.isfinite(value) for value in terms.values()), terms
    assert all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)
    assert any(p.grad is not None for p in parameters)


def kinds() -> list[Path]:
    """One recipe for each network, images and method."""
    found = {}
    for path in RECIPES:
        config = load(path)
        found.setdefault((str(config.model.spec()), config.data.name, config.method.name), path)
    return list(found.values())


@pytest.mark.parametrize("path", kinds(), ids=name_of)
def test_the_networks_of_the_configs_do_a_step(path):
    """As they are, on two images in the ramp: every network on the images of its data set under every method it has."""
    torch.manual_seed(0)
    config = load(path)
    shape, classes = type(config.data).shape, type(config.data).classes
    network = BoundedNetwork(config.model.build(shape, classes), shape, classes, config.data.mean, config.data.std)
    clock = Clock(100, config.training.epochs)
    radii = radii_at(config, max(0, config.eps.schedule.end(clock) - 50), clock)
    x, labels = torch.rand(2, *shape), torch.randint(classes, (2,))
    parameters = list(network.parameters())
    memory = config.method.memory(parameters)
    batch, terms = forward_batch(network, config.method, config.attack, x, labels, radii, config.training)
    terms |= config.method.backward(batch, terms, parameters, memory)
    assert all(torch.isfinite(value) for value in terms.values()), terms
    assert all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)
    assert sum(p.grad is not None for p in parameters) > len(parameters) / 2


@pytest.mark.parametrize("path", [p for p in RECIPES if "quick" not in p.parts], ids=name_of)
def test_every_recipe_names_its_source_and_the_published_figures(path):
    paper = load(path).paper
    assert {"source", "natural", "verified"} <= set(paper)
    assert "table" in paper or "tuned" in path.parts
    known = {
        "source",
        "table",
        "natural",
        "verified",
        "verified_by",
        "pgd",
        "ibp_or_crown",
        "seconds",
        "others",
        "note",
    }
    assert set(paper) <= known
    for row in (paper, *paper.get("others", {}).values()):
        figures = [row[key] for key in ("natural", "pgd", "verified") if row.get(key) is not None]
        assert all(0 <= value < 100 for value in figures)
        assert figures == sorted(figures, reverse=True), "verified <= under attack <= natural"
    assert paper["verified"] is None or paper["verified_by"] in ("ibp", "crown_ibp", "mip", "bab")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_no_published_figure_is_one_that_nobody_read(path):
    paper = load(path).paper or {}
    note = str(paper.get("note", ""))
    if "not read" in note or "unverified" in note:
        assert {paper["natural"], paper["verified"], paper.get("pgd")} == {None}


def test_some_published_values_as_printed():
    """A few cells of the papers' tables, through the whole inheritance of the files."""
    mtl = load(CONFIGS / "cifar10_2_255" / "mtl_ibp.yaml")
    assert (mtl.method.alpha, mtl.training.l1, mtl.attack.steps, mtl.training.epochs) == (4e-3, 3e-6, 8, 160)
    assert (mtl.paper["natural"], mtl.paper["verified"]) == (80.11, 63.24)
    crown = load(CONFIGS / "crown_ibp" / "mnist_0.4" / "dm_small" / "crown_ibp_kappa_1_0.yaml")
    assert (crown.training.epochs, crown.training.batch_size, crown.optimizer.lr) == (200, 256, 5e-4)
    assert (crown.method.kappa_start, crown.method.kappa_end, crown.training.shi.weight) == (0, 1, 0)
    assert crown.paper["others"]["0.3"]["verified"] == pytest.approx(100 - 9.40)
    gowal = load(CONFIGS / "ibp" / "mnist_0.3" / "ibp.yaml")
    assert gowal.eps.schedule.spec() == {
        "name": "linear", "warmup": 2000, "attack_warmup": 0, "length": 10000, "unit": "steps",
    }  # fmt: skip
    assert float(gowal.eps.target) * gowal.eps.train_multiplier == pytest.approx(0.4, rel=1e-5)
    joint = load(CONFIGS / "adv_ibp" / "mnist_0.4" / "dm_small" / "adv_crown_ibp.yaml")
    assert (joint.method.name, joint.attack.step_size, joint.eps.schedule.attack_warmup) == ("adv_crown_ibp", 1.25, 5)
    assert joint.paper["others"]["0.3"]["verified"] == pytest.approx(100 - 9.03)
