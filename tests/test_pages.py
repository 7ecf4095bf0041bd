"""What pages say around their tables: parts that were run, seeds and commits, notes on published figures, LaTeX."""

import re

import pytest
from experimenting import CONFIG, EXPERIMENT, PAPERS, SMALL, cells_of, experiment_of, made_up, write

from expressive_losses.experiments import grid, render
from expressive_losses.experiments.groups import in_short
from expressive_losses.experiments.rows import by_command
from expressive_losses.experiments.spec import load
from expressive_losses.experiments.table import Line, lines

ENTRY = EXPERIMENT["entries"][0]


def found(path, scale="full", naturals=(), seeds=None, **more):
    """The experiment, and its lines with made-up rows for the first cells that the scale runs."""
    experiment = load(path)
    cells = grid.cells(experiment, scale, seeds)
    run = [cell for cell in cells if cell.runs]
    rows = [{**made_up(cell, natural), **more} for cell, natural in zip(run, naturals, strict=False)]
    return experiment, lines(experiment, cells, by_command(rows))


def page(path, scale="full", naturals=(), seeds=None, **more) -> str:
    experiment, its = found(path, scale, naturals, seeds, **more)
    return render.markdown(experiment, scale, its)


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown table, header first."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [table[0], *table[2:]]


def test_a_page_counts_cells_and_marks_lines_of_which_a_part_was_run(tmp_path):
    text = page(write(tmp_path, verify={"ibp": {"bound": "ibp"}}), naturals=(50.0, 51.0, 52.0, 53.0), seeds=[7, 8, 9])
    assert [row[-2] for row in rows_of(text)[1:]] == ["3", "1 of 3"]
    assert "Run: 4 of 6 cells of this scale, in 2 of 2 lines (1 in part). Seeds 7, 8, 9." in text
    assert "51.00 ± 1.00" in text and "53.00 |" in text, "one run has no deviation"
    assert "sample standard deviation (n - 1)" in text


def test_one_run_has_no_largest_and_smallest(tmp_path):
    columns = {name: {"figure": "natural", "statistic": name} for name in ("max", "median", "min")}
    path = write(tmp_path, columns=columns)
    one = rows_of(page(path, naturals=(50.0,), seeds=[7, 8], natural=50.0))[1]
    assert one[2:5] == ["–", "50.00", "–"] and "–: one run has no extremes" in page(
        path, naturals=(50.0,), seeds=[7, 8], natural=50.0
    )
    two = page(path, naturals=(50.0, 50.0), seeds=[7, 8], natural=50.0)
    assert rows_of(two)[1][2:5] == ["50.00"] * 3 and "–" not in two


def test_a_page_names_the_commits_of_its_rows(tmp_path):
    experiment = load(write(tmp_path))
    first, second = grid.cells(experiment, "full")
    for commits, said in (
        (("0123456789ab", "0123456789ab"), "Trained at commit 0123456.\n"),
        (
            ("0123456789ab", "ba98-dirty"),
            "Trained at commits 0123456, ba98-dirty. Commits may differ",
        ),
    ):
        rows = [{**made_up(cell, 50.0), "git": git} for cell, git in zip((first, second), commits, strict=True)]
        its = lines(experiment, [first, second], by_command(rows))
        assert said in render.markdown(experiment, "full", its)


def test_notes_on_published_figures_are_numbered_footnotes(tmp_path):
    """What all have is said once; equal notes share a number, also for the radii in ``others``."""
    about = {"verified_by": "bab", "natural": 90.0}
    entries = [
        {"config": "small.yaml", "labels": {"method": "A"}, "published": about},
        {"config": "small.yaml", "labels": {"method": "B"}, "published": {**about, "note": "of one run"}},
        {
            "config": "small.yaml",
            "labels": {"method": "C"},
            "tested": ["0.01", "0.02"],
            "published": {**about, "source": "Another & paper", "others": {"0.01": {"natural": 1.0}}},
        },
    ]
    experiment, its = found(write(tmp_path, entries=entries, lines=["method"], source="The paper"))
    text = render.markdown(experiment, "full", its)
    assert [row[0] for row in rows_of(text)[1:]] == ["A", "B [1]", "C [2]"]
    assert "\n\n[1] paper: of one run\n\n[2] paper: Another & paper\n\n" in text
    assert "Published figures: verified by branch-and-bound." in text
    assert r"[2] paper: Another \& paper" in render.latex(experiment, "full", its)
    own = {**CONFIG, "paper": {"source": "The paper", "natural": 9.0, "note": "slip"}}
    assert "[1] paper: slip" in page(write(tmp_path, own, entries=[{"config": "small.yaml"}], source="The paper"))


def test_latex_says_what_the_page_says(tmp_path):
    entries = [{**ENTRY, "published": {"natural": 90.0}}]
    path = write(tmp_path, entries=entries, note="Of 10 % & more.", scales={"cpu": {"set": SMALL}})
    experiment, its = found(path, "cpu", (50.0, 51.0))
    text = render.latex(experiment, "cpu", its)
    for said in (r"Of 10 \% \& more.", "In place of the paper's, in every line", "in parentheses", "Run: 2 of 2 cells"):
        assert said in text
    assert "smoothed ramp over 0.5 of the run" in text


def test_published_deviations_stand_beside_the_means(tmp_path):
    entries = [{**ENTRY, "published": {"natural": {"mean": 93.15, "deviation": 0.4}}}]
    experiment, its = found(write(tmp_path, entries=entries), naturals=(94.15,))
    assert "| 94.15 | 93.15 ± 0.4 | **+1.00** |" in render.markdown(experiment, "full", its)
    assert "93.15,0.4," in render.comma_separated(experiment, "full", its)
    assert r"93.15 $\pm$ 0.4" in render.latex(experiment, "full", its)


@pytest.mark.parametrize("name, last", [("table6", (35.25, 0.18)), ("tableE", (84.8, 0.3))])
def test_the_papers_deviations_are_all_there(name, last):
    (path,) = [path for path in PAPERS if path.stem == name and path.parent.name != "ibp"]
    its = lines(experiment_of(path), cells_of(path, "full"), {})
    values = [line.values[column] for line in its for column in ("natural", "verified")]
    assert all(value.published_deviation is not None for value in values)
    assert (values[-1].published, values[-1].published_deviation) == last


def test_what_is_not_in_the_paper_says_so(tmp_path):
    """An entry that is no part of the full scale; it takes no part in what all lines have in place of the paper's."""
    entries = [{"config": "small.yaml", "labels": {"method": label}} for label in ("A", "B")]
    entries.append({"config": "small.yaml", "labels": {"method": "C"}, "scales": ["cpu"]})
    scales = {"cpu": {"set": {"training.batch_size": 7}}}
    path = write(tmp_path, entries=entries, scales=scales, lines=["method"])
    text = page(path, "cpu", (50.0, 51.0, 52.0))
    assert [row[4:] for row in rows_of(text)[1:]] == [[], [], ["not in the paper"]]
    assert "in every line that was run and is in the paper: batches of 7." in text


def test_no_column_is_empty_or_there_twice(tmp_path):
    columns = {name: {"figure": f"verify.ibp.{name}", "published": name} for name in ("natural", "verified")}
    entries = [{**ENTRY, "published": {"natural": 90.0, "verified": 80.0}}]
    path = write(tmp_path, entries=entries, columns=columns, scales={"cpu": {"set": SMALL}})
    for scale, compared in (("cpu", 0), ("full", 2)):
        header, *_ = rows_of(page(path, scale, (50.0, 51.0)))
        assert len(set(header)) == len(header)
        assert sum(name.endswith(" difference") for name in header) == compared
        assert sum(name.endswith(" published") for name in header) == 2


def test_what_was_run_comes_before_what_a_line_is_named_after(tmp_path):
    config = {**CONFIG, "data": {"name": "mnist"}, "eps": {"target": "0.00784"}}
    change = {"data": "digits", "model": "cnn_small", "eps.target": "0.1"}
    path = write(tmp_path, config, lines=["data", "eps", "network"], entries=[{"config": "small.yaml"}],
                 scales={"cpu": {"set": change}})  # fmt: skip
    _, line = rows_of(page(path, "cpu", (50.0,)))
    assert line[:3] == ["digits (for mnist)", "0.1 (for 2/255)", "cnn_small (for cnn_tiny)"]
    assert not re.search("data|network|eps 0.1", line[-1]) and "batches of 64" in line[-1]
    assert rows_of(page(path, "cpu"))[1][:3] == line[:3], "not run yet: named as the others are"
    assert rows_of(page(path, "full"))[1][:3] == ["mnist", "2/255", "cnn_tiny"]


def test_many_lines_that_were_not_run_are_named_below(tmp_path):
    entries = [{**ENTRY, "axes": {"method.alpha": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}}]
    scales = {"cpu": {"only": {"alpha": ["0.1", "0.2", "0.3"]}}}
    path = write(tmp_path, entries=entries, scales=scales)
    text = page(path, "cpu", (50.0,))
    assert len(rows_of(text)) == 2
    assert "Not run (2 lines): alpha 0.2, 0.3." in text
    assert "Not part of this scale: 4 lines of the paper. The scale has only alpha 0.1, 0.2, 0.3." in text
    nothing = page(path, "cpu")
    assert len(rows_of(nothing)) == 8, "of nothing the whole table is shown"
    assert "Not part of this scale: 4 lines of the paper." in nothing and "Not run" not in nothing


def test_lines_are_named_by_what_tells_them_from_the_others(tmp_path):
    """A label that another one implies, or that has all its values, is left out; equal parts are said once."""
    entries = [
        {
            "config": "small.yaml",
            "labels": {"recipe": recipe, "width": width},
            "axes": {"method.alpha": [0.1, 0.2, 0.3]},
        }
        for recipe in ("A", "B", "C", "D")
        for width in ("2", "4")
    ]
    _, its = found(write(tmp_path, entries=entries, lines=["recipe", "width", "alpha"]))
    chosen = {
        "A, B": [line for line in its if line.labels["recipe"] in "AB"],
        "A: alpha 0.2, 0.3": [line for line in its if line.labels["recipe"] == "A" and line.labels["alpha"] != "0.1"],
        "A: width 2: alpha 0.1; D: width 4: alpha 0.3": [its[0], its[-1]],
        "A; B: alpha 0.1": [line for line in its if line.labels["recipe"] == "A"]
        + [line for line in its if line.labels["recipe"] == "B" and line.labels["alpha"] == "0.1"],
    }
    for said, some in chosen.items():
        assert in_short(some, its) == said


def test_lines_in_too_many_parts_are_counted():
    """Those where two labels have the same number have no more than that in common."""
    its = {
        (data, eps, width): Line(
            dict(data=data, eps=eps, width=width), dict(data=data, eps=eps, width=width), {}, 1, 1, (), ()
        )
        for data in ("mnist", "svhn")
        for eps in map(str, range(13))
        for width in map(str, range(13))
    }
    some = [its["mnist", number, number] for number in map(str, range(13))]
    assert in_short(some[:2], its.values()) == "mnist: eps 0: width 0; mnist: eps 1: width 1"
    assert in_short([*some, its["svhn", "0", "1"]], its.values()) == "of data mnist 13, svhn 1"


@pytest.mark.parametrize("paper, name", [("adv_ibp", "table4"), ("crown_ibp", "table2"), ("crown_ibp", "tableC")])
def test_what_a_page_lacks_is_said_in_a_line(paper, name):
    """Of a page of the first cell alone, whose other lines are many."""
    (path,) = [path for path in PAPERS if (path.parent.name, path.stem) == (paper, name)]
    experiment, cells = experiment_of(path), cells_of(path, "full")
    its = lines(experiment, cells, by_command([made_up(cells[0], 50.0)]))
    (said,) = re.findall("^Not run .*", render.markdown(experiment, "full", its), re.MULTILINE)
    assert len(said) < 250, said


def test_columns_that_are_not_clear_from_their_names_are_explained(tmp_path):
    columns = {
        "attacked": {"figure": "verify.bab.adversarial"},
        "verified": {"figure": "verify.bab.verified"},
        "IBP": {"figure": "verify.bab", "stage": "ibp"},
    }
    text = page(write(tmp_path, columns=columns, verify={"bab": {"bound": "cascade"}}))
    assert "IBP: verified by IBP alone; attacked: still right under PGD; " in text
    assert "verified: proven by the cascade, which ends in branch-and-bound." in text


def test_where_lines_differ_in_what_proves_a_legend_says_which(tmp_path):
    """What runs counts: the scale may replace it, and an entry may have its own."""
    entries = [{"config": "small.yaml", "labels": {"method": label}} for label in ("A", "B", "C")]
    entries[1]["verify"] = {"ibp": {"bound": "crown-ibp"}}
    columns = {
        name: {"figure": "verify.ibp.verified", "statistic": kind}
        for name, kind in (("best", "max"), ("middle", "median"))
    }
    scales = {"cpu": {"verify": {"bound": "clean,ibp,crown"}}}
    path = write(tmp_path, entries=entries, lines=["method"], columns=columns, scales=scales)
    text = page(path, naturals=(50.0, 51.0, 52.0))
    assert "Accuracies are percent of the images. " in text, "no column is a mean"
    assert "best: the highest of the runs; best, middle: proven by IBP (by CROWN-IBP in the lines of B);" in text
    assert "middle: the median of the runs" in text
    assert "CROWN-IBP" not in page(path, naturals=(50.0,)), "B was not run"
    assert "best, middle: proven by IBP, then CROWN;" in page(path, "cpu", (50.0, 51.0))


@pytest.mark.parametrize("paper, name", [("adv_ibp", "table2"), ("crown_ibp", "table2"), ("crown_ibp", "tableC")])
def test_pages_with_a_bound_of_some_entries_say_what_verified_ours(paper, name):
    (path,) = [path for path in PAPERS if (path.parent.name, path.stem) == (paper, name)]
    text = render.markdown(experiment_of(path), "full", lines(experiment_of(path), cells_of(path, "full"), {}))
    assert "verified: proven by IBP (by CROWN-IBP in the lines of eps 2/255: crown_ibp" in text


def test_a_page_of_seconds_says_nothing_of_accuracies_and_images(tmp_path):
    columns = {"seconds": {"figure": "training_seconds", "percent": False}}
    text = page(write(tmp_path, columns=columns), naturals=(50.0, 51.0), training_seconds=7.0)
    loss = {"adversarial": {"figure": "measures.losses.adversarial", "percent": False}}
    assert "PGD" not in page(write(tmp_path, columns=loss, measures=["losses"])), "a loss, no accuracy"
    assert "images" not in text and "Mean and sample standard deviation (n - 1) over the runs." in text


def test_the_legend_names_the_places_that_the_page_has(tmp_path):
    """What differs in all lines stands above the table; in some, in its last column."""
    both = [{"config": "small.yaml", "labels": {"method": label}, "published": {"natural": 90.0}} for label in "AB"]
    own = [both[0], {**both[1], "at": {"cpu": {"training.epochs": 3}}}]
    for entries, change, where in (
        (both, SMALL, ": above the table stands what ours has in its place."),
        (own, {}, ": the last column says what ours has in its place."),
        (own, {"training.batch_size": 7}, "in its place, above the table stands what all lines have."),
    ):
        text = page(
            write(tmp_path, entries=entries, lines=["method"], scales={"cpu": {"set": change}}), "cpu", (1.0, 2.0)
        )
        assert where in text
        assert ("last column" in text) == (rows_of(text)[0][-1] == "in place of the paper's")
        assert ("above the table" in text) == ("In place of the paper's, in every line" in text)


def test_seconds_of_the_papers_setting_have_no_parentheses_and_no_difference(tmp_path):
    columns = {"seconds": {"figure": "training_seconds", "published": "seconds", "percent": False}}
    entries = [{**ENTRY, "published": {"seconds": 9}}]
    path = write(tmp_path, columns=columns, entries=entries, scales={"cpu": {"set": SMALL}})
    for scale, published in (("full", "9.00"), ("cpu", "(9.00)")):
        header, line, *_ = rows_of(page(path, scale, (50.0,), training_seconds=7.0))
        assert line[2:4] == ["7.00", published] and not any("difference" in name for name in header)
