"""Mistakes in the names of an experiment file: one line before anything is run, not a gap in a page hours later."""

import pytest
from experimenting import CONFIG, EXPERIMENT, write

from expressive_losses.errors import UserError
from expressive_losses.experiments import grid, render
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.spec import load
from expressive_losses.experiments.table import lines

(ENTRY,) = EXPERIMENT["entries"]
RANGES = {"kind": "ranges", "x": "alpha", "y": ["natural"]}


def entry(**changes) -> dict:
    return {"entries": [{**ENTRY, **changes}]}


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"figure": {"x": "alhpa", "y": ["natural"]}}, r"figure\.x: unknown 'alhpa'; did you mean 'alpha'\?"),
        ({"figure": {"y": ["natural"]}}, "figure: x: lines need one"),
        ({"figure": {"x": "alpha", "y": ["natrual"]}}, r"figure\.y: unknown 'natrual'; did you mean 'natural'\?"),
        (
            {"figure": {"x": "alpha", "y": ["natural"], "panels": ["esp"]}},
            r"figure\.panels: unknown 'esp'; known: method",
        ),
        (
            {"figure": {"kind": "scatter", "x": "alpha", "y": ["natural"]}},
            r"figure\.x: unknown 'alpha'; known: natural",
        ),
        ({"figure": RANGES}, "figure: y: ranges need 3 of them, got natural"),
        ({"figure": {"kind": "radii", "y": ["natural"]}}, r"figure\.y: unknown 'natural'; there are none"),
        ({"figure": {"kind": "epochs", "y": ["tightness"]}}, r"figure\.y: unknown 'tightness'; known: natural, ibp"),
        (
            {"columns": {"natural": {"figure": "verify.ipb.natural"}}},
            r"columns\.natural\.figure: unknown 'ipb'; did you mean 'ibp'\?",
        ),
        (
            {"columns": {"natural": {"figure": "verify.ibp.verifed"}}},
            r"columns\.natural\.figure: unknown 'verifed'; did you mean 'verified'\?",
        ),
        ({"columns": {"natural": {"figure": "verfy.ibp.natural"}}}, r"columns\.natural\.figure: unknown 'verfy'"),
        (
            {"columns": {"natural": {"figure": "verify.ibp.natural.x"}}},
            r"columns\.natural\.figure: expected 3 names with dots between them, got verify\.ibp\.natural\.x",
        ),
        ({"columns": {"natural": {"figure": "verify.ibp"}}}, r"columns\.natural\.figure: expected 3 names"),
        (
            {"columns": {"natural": {"figure": "measures.losses.own"}}},
            r"columns\.natural\.figure: unknown 'losses'; there are none",
        ),
        (entry(verify={"bab": None}), r"entries\.0\.verify: unknown 'bab'; known: ibp"),
        (
            entry(verify={"ibp": {"bounds": "ibp"}}),
            r"entries\.0\.verify\.ibp: unknown key 'bounds'; did you mean 'bound'",
        ),
        (
            entry(verify_at={"smoke": {"frist": 3}}),
            r"entries\.0\.verify_at\.smoke: unknown key 'frist'; did you mean 'first'",
        ),
        (entry(verify_at={"smoke": {"first": 0}}), r"entries\.0\.verify_at\.smoke: first: .* greater than 0, got 0"),
        ({"scales": {"cpu": {"verify": {"frist": 3}}}}, r"scales\.cpu\.verify: unknown key 'frist'"),
        (entry(published={"natrual": 90.0}), r"entries\.0\.published: unknown 'natrual'; did you mean 'natural'\?"),
        (
            entry(published={"others": {"0.1": 90.0}}),
            r"entries\.0\.published: others: expected figures by radius, got {'0\.1': 90\.0}",
        ),
        (entry(also_published={"second": 9}), r"entries\.0\.published: unknown 'second'"),
        (
            entry(verify={"ibp": {"bound": "crwon"}}),
            r"entries\.0\.verify\.ibp: unknown bound 'crwon'; did you mean 'crown'",
        ),
        ({"verify": {"ibp": {"bound": "ipb"}}}, r"verify\.ibp: unknown bound 'ipb'"),
        ({"verify": {"ibp": {"options": {"bab.timout": 3}}}}, r"verify\.ibp: .*timout"),
        ({"verify": {"ibp": {"eps": "8"}}}, r"verify\.ibp\.eps: radii are .*did you mean 8/255\?"),
        (entry(tested=["0.1", "8"]), r"entries\.0\.tested\.1: radii are .*did you mean 8/255\?"),
        (entry(published={"others": {"0.1": {"natrual": 90.0}}}), r"entries\.0\.published: unknown 'natrual'"),
    ],
)
def test_a_name_that_nothing_has_is_named_with_its_key(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=rf"table\.yaml: {complaint}"):
        load(write(tmp_path, **changes))


def test_a_seed_twice_is_one_run(tmp_path):
    assert [cell.seed for cell in grid.cells(load(write(tmp_path)), "smoke", [1, 1])] == [1, 1], "of two alphas"


@pytest.mark.parametrize(
    "only, complaint",
    [
        ({"alhpa": ["0.1"]}, r"only\.alhpa: no cell has '0\.1'"),
        ({"method": ["MTL", "MLT"]}, r"only\.method: no cell has 'MLT'; did you mean 'MTL'\?"),
        ({"data": ["digits"], "method": ["MTL"], "recipe": ["other"]}, r"only\.recipe: no cell has 'other'"),
    ],
)
def test_a_label_of_no_cell_is_named(tmp_path, only, complaint):
    path = write(tmp_path, scales={"smoke": {"only": only}})
    with pytest.raises(UserError, match=rf"table: scales\.smoke\.{complaint}"):
        main(["run", str(path), "--dry-run"])


def test_labels_that_no_cell_has_together_are_no_grid_and_an_empty_list_is_meant(tmp_path):
    entries = [
        {**ENTRY, "labels": {"l1": name}, "axes": {"method.alpha": [alpha]}} for name, alpha in (("a", 1), ("b", 0))
    ]
    both = {"l1": ["a"], "alpha": ["0"]}
    path = write(
        tmp_path, entries=entries, scales={"smoke": {"only": both}, "cpu": {"only": {"l1": [], "alpha": ["0"]}}}
    )
    with pytest.raises(UserError, match=r"table: scales\.smoke\.only: no cell has all of these labels"):
        grid.cells(load(path), "smoke")
    cells = grid.cells(load(path), "cpu")
    assert not any(cell.runs for cell in cells)
    text = render.markdown(load(path), "cpu", lines(load(path), cells, {}))
    assert "only" not in text.partition("0 cells of this scale")[2]


def test_a_label_of_the_lines_that_no_cell_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"table: lines: no cell has the label 'alhpa'; did you mean 'alpha'\?"):
        grid.cells(load(write(tmp_path, lines=["method", "alhpa"])), "smoke")
    entries = [ENTRY, {"config": "small.yaml"}]
    assert grid.cells(load(write(tmp_path, entries=entries)), "smoke"), "one that some cells have is known"


def test_a_stage_that_is_not_run_is_named(tmp_path):
    columns = {"by CROWN": {"figure": "verify.ibp", "stage": "crwon"}}
    verify = {"ibp": {"bound": "ibp,crown"}}
    with pytest.raises(UserError, match=r"columns\.by CROWN\.stage: no stage 'crwon' is run; did you mean 'crown'\?"):
        grid.cells(load(write(tmp_path, columns=columns, verify=verify)), "smoke")


def test_options_that_do_not_fit_the_stages_of_an_entry_are_named(tmp_path):
    """Those of the experiment are of stages that it does not run itself."""
    path = write(
        tmp_path,
        verify={"ibp": {"bound": "ibp", "options": {"bab.timout": 3}}},
        **entry(verify={"ibp": {"bound": "bab"}}),
    )
    with pytest.raises(UserError, match=r"table: verify\.ibp of small\.yaml: .*timout"):
        grid.cells(load(path), "smoke")


def test_a_published_figure_that_no_line_has_is_named(tmp_path):
    columns = {"natural": {"figure": "verify.ibp.natural", "published": "natrual"}}
    path = write(tmp_path, {**CONFIG, "paper": {"natural": 90.0}}, columns=columns, entries=[{"config": "small.yaml"}])
    with pytest.raises(UserError, match=r"table: columns\.natural\.published: no line has 'natrual'"):
        grid.cells(load(path), "smoke")
    path = write(tmp_path, columns=columns)
    assert grid.cells(load(path), "smoke"), "without any published figures a grid may share the columns of others"


def test_curves_over_a_label_without_numbers_are_named(tmp_path):
    figure = {"x": "method", "y": ["natural"]}
    with pytest.raises(UserError, match=r"table: figure\.x: lines need numbers, 'method' is 'MTL'"):
        grid.cells(load(write(tmp_path, figure=figure)), "smoke")
    assert grid.cells(load(write(tmp_path, figure={**figure, "kind": "bars"})), "smoke")


def test_a_figure_may_be_published_beside_those_of_the_config(tmp_path):
    """Source and verifier stay; so do figures of the radius of the test, and a variant has none of the config's."""
    about = {"source": "them", "verified_by": "ibp"}
    paper = {**about, "natural": 90.0, "others": {"0.1": {"natural": 80.0}}}
    more = {"config": "small.yaml", "also_published": {"seconds": 7}}
    entries = [{**more, "tested": ["0.05", "0.1", "0.2"]}, {**more, "set": {"training.l1": 1e-5}}]
    columns = {"training s": {"figure": "training_seconds", "published": "seconds"}}
    own, other, none, variant = (
        cell.published
        for cell in grid.cells(
            load(write(tmp_path, {**CONFIG, "paper": paper}, entries=entries, columns=columns)), "full"
        )
    )
    assert own == {**paper, "seconds": 7}
    assert other == {**about, "natural": 80.0, "seconds": 7}
    assert none == variant == {"seconds": 7}
    emptied = [{**more, "published": {}, "also_published": {}}]
    (cell,) = grid.cells(load(write(tmp_path, {**CONFIG, "paper": paper}, entries=emptied, columns=columns)), "full")
    assert cell.published == {}


def test_a_cell_is_called_what_pages_call_it(tmp_path):
    path = write(tmp_path, {**CONFIG, "eps": {"target": "0.03137"}})
    assert ", eps 8/255, " in grid.described(grid.cells(load(path), "full")[0])
