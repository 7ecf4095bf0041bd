"""Grids: which cells an experiment file stands for, and how they are shared out."""

import pytest
from experimenting import CONFIG, write

from expressive_losses.cli.train import overrides, train_parser
from expressive_losses.config import load as load_config
from expressive_losses.errors import UserError
from expressive_losses.experiments import grid
from expressive_losses.experiments.spec import load


def test_the_grid_is_the_product_of_axes_and_seeds(tmp_path):
    experiment = load(write(tmp_path))
    cells = grid.cells(experiment, "smoke", [1, 2])
    assert [(cell.labels["alpha"], cell.seed) for cell in cells] == [("0.1", 1), ("0.1", 2), ("0.5", 1), ("0.5", 2)]
    assert [cell.resolved.method.alpha for cell in cells] == [0.1, 0.1, 0.5, 0.5]
    assert {cell.resolved.training.epochs for cell in cells} == {1}
    assert {cell.paper.training.epochs for cell in cells} == {60}, "the paper's setting stays as it is"
    assert len({cell.key for cell in cells}) == 4


def test_entries_inside_an_entry_share_what_it_says(tmp_path):
    """Depth first, what is inside over what is around it; a list may be there twice (by an anchor of YAML)."""
    pair = [{"labels": {"l1": "none"}}, {"set": {"training.l1": 1e-5}, "labels": {"l1": "some"}}]
    inner = [{"set": {"eps.target": "0.1"}, "entries": pair}, {"set": {"eps.target": "0.2"}, "entries": pair}]
    shared = {"config": "small.yaml", "labels": {"l1": "?", "method": "M"}, "axes": {"method.alpha": [0.3]}}
    flat = [
        {
            **shared,
            "labels": {"l1": name, "method": "M"},
            "set": {"eps.target": eps, **({"training.l1": 1e-5} if name == "some" else {})},
        }
        for eps in ("0.1", "0.2")
        for name in ("none", "some")
    ]
    nested = load(write(tmp_path, entries=[{**shared, "entries": inner}, {"config": "small.yaml"}]))
    assert nested.entries == load(write(tmp_path, entries=[*flat, {"config": "small.yaml"}])).entries
    assert [list(entry.set) for entry in nested.entries[:2]] == [["eps.target"], ["eps.target", "training.l1"]]


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"entries": [{"config": "x", "seed": 1}]}, r"unknown key 'entries\.0\.seed'"),
        ({"entries": [{"config": "x", "entries": [{}, {"axis": {}}]}]}, r"'entries\.1\.axis'; did you mean 'axes'"),
        (
            {"entries": [{"set": {}, "entries": {"config": "x"}}]},
            "entries: expected a list of entries, got {'config': 'x'}",
        ),
        ({"entries": [{"set": {}, "entries": []}]}, r"expected a list of entries, got \[\]"),
        ({"entries": ["small.yaml"]}, "entries: expected a mapping with 'config' or 'entries', got 'small.yaml'"),
        ({"verify": {"ibp": {"bounds": "ibp"}}}, r"'verify\.ibp\.bounds'; did you mean 'bound'"),
        ({"figure": {"y": ["natural"], "pannels": []}}, r"'figure\.pannels'; did you mean 'panels'"),
    ],
)
def test_a_mistake_in_an_experiment_file_is_named(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(write(tmp_path, **changes))


def test_a_scale_replaces_after_the_entry_and_an_axis_after_both(tmp_path):
    entry = {"config": "small.yaml", "set": {"eps.schedule.length": 7}, "at": {"smoke": {"eps.schedule.mid": 0.5}}}
    change = {"eps.schedule": {"name": "smoothed", "length": 3}}
    experiment = load(write(tmp_path, entries=[entry], scales={"smoke": {"set": change}}))
    schedule = grid.cells(experiment, "smoke")[0].resolved.eps.schedule
    assert (schedule.length, schedule.mid) == (3, 0.5)
    assert grid.cells(experiment, "full")[0].resolved.eps.schedule.length == 7
    entry = {"config": "small.yaml", "set": {"training.epochs": 9}, "axes": {"training.epochs": [2, 3]}}
    experiment = load(write(tmp_path, entries=[entry]))
    assert [cell.resolved.training.epochs for cell in grid.cells(experiment, "smoke")] == [2, 3]


def test_an_entry_may_be_verified_in_its_own_way_at_one_scale(tmp_path):
    own = {"smoke": {"first": 5, "options": {"pgd.steps": 3}}}
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "set": {"training.seed": 2}, "verify_at": own}]
    asked = {"first": 6, "options": {"pgd.steps": 4, "pgd.restarts": 2}}
    experiment = load(write(tmp_path, entries=entries, scales={"smoke": {"verify": asked}}))
    found = [cell.verifications["ibp"] for cell in grid.cells(experiment, "smoke")]
    assert [(one.first, one.options["pgd.steps"], one.options["pgd.restarts"]) for one in found] == [
        (6, 4, 2),
        (5, 3, 2),
    ]
    assert [cell.verifications["ibp"].first for cell in grid.cells(experiment, "full")] == [8, 8]


@pytest.mark.parametrize("radius", ["0.1", 0.1])
def test_radii_of_the_test_share_a_network_and_have_their_published_figures(tmp_path, radius):
    paper = {"natural": 90, "others": {radius: {"natural": 80}}}
    path = write(tmp_path, {**CONFIG, "paper": paper}, entries=[{"config": "small.yaml", "tested": [radius, "0.05"]}])
    other, own = grid.cells(load(path), "smoke")
    assert other.key == own.key
    assert (other.published["natural"], own.published["natural"]) == (80, 90)
    assert "--eps 0.1" in other.commands[1]


def test_figures_of_a_config_are_not_those_of_its_variants(tmp_path):
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "set": {"training.l1": 1e-5}}]
    path = write(tmp_path, {**CONFIG, "paper": {"natural": 90}}, entries=entries)
    assert [cell.published for cell in grid.cells(load(path), "full")] == [{"natural": 90}, None]


def test_shards_partition_the_grid_and_keep_equal_networks_together(tmp_path):
    entries = [{"config": "small.yaml", "tested": ["0.1", "0.2"], "axes": {"method.alpha": [0.1, 0.2, 0.3]}}]
    cells = grid.cells(load(write(tmp_path, entries=entries)), "smoke", [1, 2])
    parts = [grid.shard(cells, index, 4) for index in range(4)]
    assert sorted(map(id, cells)) == sorted(id(cell) for part in parts for cell in part)
    keys = [{cell.key for cell in part} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 6


def test_the_printed_command_trains_the_same(tmp_path):
    cell = grid.cells(load(write(tmp_path)), "smoke")[0]
    options = train_parser().parse_args(cell.train_arguments)
    assert load_config(options.config, overrides(options)) == cell.resolved
