"""What tables say that a run has in place of the paper's setting: all of it, and nothing that it has from the paper."""

import re

import pytest
from experimenting import ROOT, SCRIPTS, cells_of, write

from expressive_losses import config as configs
from expressive_losses.errors import UserError
from expressive_losses.experiments import grid
from expressive_losses.experiments.settings import SILENT, replaced, replaced_in_verification
from expressive_losses.experiments.spec import SCALES, Verification, load


def leaves(value, path=""):
    """The fields of a config by path, as plain values."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, own in value.items() for key, leaf in leaves(own, f"{path}.{name}".lstrip(".")).items()}


#: How a page says a field, where not as its key and its value: {} is the value.
WORDS = {
    "data.name": "data {}",
    "model.name": "network {}",
    "eps.target": "eps {}",
    "eps.train_multiplier": "trained at {} times eps",
    "eps.attack_factor": "training attacks at {} times",
    "eps.schedule.name": "{} ramp",
    "eps.schedule.length": "[a-z]+ ramp over {}",
    "eps.schedule.unit": "[a-z]+ ramp over [0-9.]+ {}",
    "eps.schedule.warmup": "[a-z]+ ramp .* warm-up of {}",
    "eps.schedule.attack_warmup": "[a-z]+ ramp .* warm-up .*, {} .*of it attacked",
    "optimizer.lr": "learning rate {}",
    "lr_schedule.name": "{} learning rate",
    "lr_schedule.gamma": "decay times {}",
    "lr_schedule.milestones": "decay times .* at .*{}",
    "lr_schedule.unit": "decay times .* at .*{}",
    "training.epochs": "{} epochs?",
    "training.batch_size": "batches of {}",
    "training.l1": "L1 {}",
    "training.clip_norm": "gradients clipped at {}",
    "training.initialize": "initialisation {}",
    "training.shi.weight": "regulariser of Shi et al. at {}",
}


def words_of(key: str) -> str:
    """The words of a key, as a pattern with a place for the value."""
    if key in WORDS:
        return WORDS[key]
    whole, _, field = key.rpartition(".")
    if whole in ("attack", "test_attack"):
        kind = "training attack" if whole == "attack" else "test attack"
        return f"{kind} {{}}" if field == "name" else f"{kind} .*{field.replace('_', ' ')} {{}}"
    return key.replace(".", " ").replace("_", " ") + " {}"


def said(key: str, value, phrases: list[str]) -> bool:
    """Whether one of the phrases says the value in the words of its key, as a word of its own."""
    if isinstance(value, list):
        return all(said(key, one, phrases) for one in value)
    word = f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
    pattern = words_of(key).format(rf"(?<![\w.]){re.escape(word)}(?![\w.])")
    return any(re.match(pattern, phrase) for phrase in phrases)


def unsaid(cell: grid.Cell) -> set[str]:
    """The fields of a cell that differ from the paper's and are in no words."""
    phrases = [
        text.replace("without warm-up", "after a warm-up of 0, 0 of it attacked").replace("of the run", "run")
        for text in cell.replaced(cell.verifications, evaluated=True)
    ]
    ours, papers = leaves(cell.resolved.resolved()), leaves(cell.paper.resolved())
    different = {key for key in ours if ours[key] != papers.get(key) and not key.startswith("paper")} - SILENT
    if "adv" not in cell.resolved.method.needs:
        different = {key for key in different if not key.startswith("attack.") and "attack_" not in key}
    for plugin in ("data", "model", "lr_schedule"):  # another name says the fields that are the plug-in's own
        if f"{plugin}.name" in different:
            different = {key for key in different if not key.startswith(f"{plugin}.")} | {f"{plugin}.name"}
    different -= {key for key in ("eps.schedule.mid", "eps.schedule.beta") if key not in papers}
    return {key for key in different if not said(key, ours[key], phrases)}


def test_a_number_that_stands_for_something_else_says_nothing():
    phrases = ["batches of 4", "smoothed ramp over 2 epochs after a warm-up of 1 epochs"]
    assert said("training.batch_size", 4, phrases) and said("eps.schedule.warmup", 1, phrases)
    assert not said("training.epochs", 4, phrases) and not said("eps.schedule.length", 1, phrases)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_that_a_scale_replaces_is_unsaid(path, scale):
    cells = [cell for cell in cells_of(path, scale) if cell.runs]
    assert {key for cell in cells for key in unsaid(cell)} == set()
    if scale == "full":
        assert {text for cell in cells for text in cell.replaced(cell.verifications)} == set()


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 if isinstance(value, float) else value


@pytest.mark.parametrize("file", ["mnist_0.1/sabr.yaml", "adv_ibp/mnist_0.4/dm_small/adv_ibp.yaml"])
def test_no_number_of_a_config_can_differ_in_silence(file):
    paper, tried = configs.load(ROOT / "configs" / file), 0
    for key, value in leaves({**paper.resolved(), "paper": None}).items():
        values = configs.parse_assignment(f"{key}={changed(value)}")
        try:
            ours = configs.resolve(configs.merge(paper.resolved(), values))
        except UserError:
            continue
        if ours != paper and key not in SILENT:
            tried += 1
            assert replaced(ours, paper, evaluated=True), key
    assert tried > 25


def test_a_verification_says_options_and_stages_but_not_their_order():
    paper = Verification(bound="ibp", options={"pgd.steps": 200})
    assert replaced_in_verification(Verification(bound="clean,ibp,pgd", options={"pgd.steps": 200}), paper) == []
    ours = Verification(bound="ibp,crown", first=5, split="train", options={"pgd.steps": 200, "bab.timeout": 3})
    assert set(ours.stages) == {"clean", "pgd", "ibp", "crown"}, "options of a stage that does not run"
    words = ["train images", "first 5 images", "verified by clean, ibp, pgd, crown"]
    assert replaced_in_verification(ours, paper) == words
    by_default = Verification(bound="ibp")
    assert replaced_in_verification(by_default, paper) == ["PGD of 40 steps"]


def test_options_are_said_in_the_order_of_the_stages():
    """In every process: a page that is rendered again is the same."""
    options = {"bab.timeout": 3, "alpha-crown.iterations": 5, "pgd.steps": 10}
    ours = Verification(bound="ibp,alpha-crown,bab", options=options)
    words = ["PGD of 10 steps", "5 iterations of alpha-CROWN", "3 s an image in branch-and-bound"]
    assert replaced_in_verification(ours, Verification(bound="ibp,alpha-crown,bab")) == words


def test_a_ramp_and_a_decay_are_said_as_a_whole():
    paper = configs.resolve({"eps": {"schedule": {"name": "linear", "warmup": 9, "length": 50}}})
    change = {
        "eps": {"schedule": {"name": "smoothed", "warmup": 0, "length": 4, "unit": "epochs"}},
        "lr_schedule": {"name": "multistep", "milestones": [6, 7], "gamma": 0.2, "unit": "epochs"},
    }
    ours = configs.resolve({**change, "training": {"epochs": 8}})
    words = ["smoothed ramp over 4 epochs without warm-up", "decay times 0.2 at epochs 6 and 7", "8 epochs"]
    assert replaced(ours, paper) == words
    other = configs.resolve(configs.merge(ours.resolved(), {"eps": {"schedule": {"mid": 0.5}}}))
    assert replaced(other, ours) == ["smoothed ramp over 4 epochs without warm-up (mid 0.5)"]
    assert replaced(ours, other) == ["smoothed ramp over 4 epochs without warm-up (mid 0.25)"]
    gamma = configs.resolve(configs.merge(ours.resolved(), {"lr_schedule": {"gamma": 0.1}}))
    assert replaced(gamma, ours) == ["decay times 0.1 at epochs 6 and 7"]


def axis(tmp_path, ours, lines, papers=("cnn_tiny", "cnn_small")):
    """What the cells of a scale that replaces an axis say."""
    entry = {"config": "small.yaml", "axes": {"model": list(papers)}}
    scales = {"cpu": {"axes": {"model": list(ours)}}}
    path = write(tmp_path, CONFIG_OF_AXIS, entries=[entry], lines=lines, scales=scales)
    return [cell.replaced(()) for cell in grid.cells(load(path), "cpu")]


CONFIG_OF_AXIS = {"method": "ibp", "data": "digits", "model": "cnn_tiny"}


def test_a_value_of_the_papers_own_axis_is_in_place_of_nothing(tmp_path):
    """Of a label: the paper's value differs from itself in nothing, any other stands for one of the paper's."""
    assert axis(tmp_path, ["cnn_small", "cnn_tiny"], ["network"]) == [(), ()]
    assert axis(tmp_path, ["cnn7"], ["network"]) == [("network cnn7",)]


def test_an_axis_without_a_label_says_how_many_of_the_papers_values_it_has(tmp_path):
    """Also where a value is the config's own: it stands for others nevertheless."""
    assert set(axis(tmp_path, ["cnn_small"], ["method"])) == {("1 of the paper's 2 networks (cnn_small)",)}
    others = ("cnn7", "cnn_small")
    words = "2 networks (cnn_tiny, dm_medium) for the paper's 2"
    assert set(axis(tmp_path, ["cnn_tiny", "dm_medium"], ["method"], others)) == {(words,)}


def test_the_attack_of_training_is_said_where_the_method_attacks_and_that_of_its_evaluation_where_it_is_shown():
    def config(method: str, steps: int) -> configs.Config:
        attack = {"name": "pgd", "steps": steps, "step_size": 0.1}
        return configs.resolve({"method": method, "attack": attack, "test_attack": attack})

    words = "attack pgd (steps 2, step size 0.1)"
    assert replaced(config("mtl_ibp", 2), config("mtl_ibp", 3)) == [f"training {words}"]
    assert replaced(config("ibp", 2), config("ibp", 3)) == []  # it trains on no attack
    assert replaced(config("ibp", 2), config("ibp", 3), evaluated=True) == [f"test {words}"]
