"""One cell: what of it counts as done, and the keeping of its row."""

import json
import shutil
import sys

import pytest
import torch
from experimenting import SMALL, rows_of, run, write

from expressive_losses import checkpoint
from expressive_losses.errors import UserError
from expressive_losses.experiments import cli, grid, measures
from expressive_losses.experiments.adopt import adopt
from expressive_losses.experiments.execute import execute, row_of_cell
from expressive_losses.experiments.rows import collect
from expressive_losses.experiments.spec import load
from expressive_losses.locking import FolderInUse, FolderLock, held, is_free
from expressive_losses.verify.head import hash_of_weights


def one_cell(tmp_path, **changes) -> grid.Cell:
    path = write(tmp_path, entries=[{"config": "small.yaml"}], **changes)
    return grid.cells(load(path), "smoke")[0]


def do(cell: grid.Cell, root) -> bool:
    return execute(cell, root, torch.device("cpu"), None)


def test_a_network_trained_again_is_verified_and_measured_again(tmp_path, monkeypatch):
    """Its run folder was deleted, and the code now begins with other weights."""
    cell = one_cell(tmp_path, measures=["losses"])
    assert do(cell, tmp_path)
    before, folder = row_of_cell(cell, tmp_path), tmp_path / cell.key
    (folder / "run").rename(tmp_path / "old_run")
    seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda number: seed(number + 1))
    for path in folder.iterdir():  # killed after training
        path.rename(tmp_path / path.name)
    do(one_cell(tmp_path, verify={}, columns={}), tmp_path)
    for name in (cell.verify_folder("ibp"), "losses.json"):
        (tmp_path / name).rename(folder / name)
    assert row_of_cell(cell, tmp_path) is None
    assert do(cell, tmp_path)
    after, network = row_of_cell(cell, tmp_path), checkpoint.read(folder / "run" / "model.pt")
    summary = json.loads((folder / cell.verify_folder("ibp") / "summary.json").read_text())
    assert summary["settings"]["weights_sha256"] == hash_of_weights(checkpoint.network_of(network))
    assert after["measures"] != before["measures"]
    assert not do(cell, tmp_path)


def test_a_verification_of_another_question_is_made_again(tmp_path):
    """A default of a stage has changed since: the same command asks something else. What was found is set aside."""
    cell = one_cell(tmp_path)
    do(cell, tmp_path)
    row, out = row_of_cell(cell, tmp_path), tmp_path / cell.key / cell.verify_folder("ibp")
    for name in ("summary.json", "ledger.jsonl"):
        (out / name).write_text((out / name).read_text().replace('"step_size": 0.0', '"step_size": 0.9'))
    assert row_of_cell(cell, tmp_path) is None
    assert do(cell, tmp_path)
    assert row_of_cell(cell, tmp_path)["verify"]["ibp"]["stages"] == row["verify"]["ibp"]["stages"]
    assert (out.with_name(f"former-1-{out.name}") / "summary.json").exists()
    assert not do(cell, tmp_path)
    (out / "summary.json").write_text("{")
    assert row_of_cell(cell, tmp_path) is None and do(cell, tmp_path) and row_of_cell(cell, tmp_path)
    assert (out.with_name(f"former-2-{out.name}") / "summary.json").read_text() == "{"
    assert '"step_size": 0.9' in (out.with_name(f"former-1-{out.name}") / "summary.json").read_text()


@pytest.mark.parametrize("damage", ["", '{"weights_sha256": "0', "[1, 2]", "{}"])
def test_figures_that_cannot_be_read_are_measured_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(measures, "measure", lambda *given: {"own": 1.5})
    cell = one_cell(tmp_path, measures=["losses"], verify={}, columns={})
    assert do(cell, tmp_path)
    (tmp_path / cell.key / "losses.json").write_text(damage)
    assert row_of_cell(cell, tmp_path) is None
    assert do(cell, tmp_path) and row_of_cell(cell, tmp_path)["measures"] == {"losses": {"own": 1.5}}


@pytest.mark.parametrize("other", [False, True])
def test_only_a_verification_of_the_same_weights_goes_on(tmp_path, other):
    cell = one_cell(tmp_path)
    do(cell, tmp_path)
    out = tmp_path / cell.key / cell.verify_folder("ibp")
    (out / "summary.json").unlink()
    head, *lines = (out / "ledger.jsonl").read_text().splitlines()
    head = {**json.loads(head), **({"weights_sha256": "0" * 64} if other else {}), "made_with": [{"git": "before"}]}
    (out / "ledger.jsonl").write_text("\n".join([json.dumps(head), *lines[:-1], ""]))
    assert do(cell, tmp_path)
    made = row_of_cell(cell, tmp_path)["verify"]["ibp"]
    assert made["images"] == 8 and ("before" in made["git"]) is not other


def test_a_row_that_cannot_be_kept_now_is_kept_at_the_end(tmp_path, monkeypatch, capsys):
    collect, failures = cli.collect, [FolderInUse("in use for a minute"), KeyError("a bug")]

    def fails_at_first(*arguments):
        if failures:
            raise failures.pop(0)
        return collect(*arguments)

    monkeypatch.setattr(cli, "collect", fails_at_first)
    path = write(tmp_path)
    run(path)
    shown = capsys.readouterr()
    assert "2 done, 0 there before, 0 failed" in shown.out and len(rows_of(path)) == 2
    assert "written at the end, now it cannot be: in use for a minute" in shown.err and "a bug" in shown.err


@pytest.mark.parametrize(
    "line", ["[1, 2]", "7", '{"seed": 1}', '{"command": "python train.py"}', '{"command": 1', "\xff"]
)
def test_a_line_that_is_no_row_is_named_with_its_file(tmp_path, line):
    path = tmp_path / "table.jsonl"
    whole = json.dumps({"command": "python train.py", "seed": 1})
    content = f"{whole}\n\n{line}\n{whole}\n".encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"table\.jsonl: line 3 is no row"):
        collect([], tmp_path, path)
    assert path.read_bytes() == content


def test_a_row_that_was_cut_off_is_dropped_with_a_warning(tmp_path, capsys):
    path = tmp_path / "table.jsonl"
    first, second = (json.dumps({"command": "python train.py", "seed": seed}) for seed in (1, 2))
    path.write_text(f"{first}\n{second}")  # whole, but for the end of the line
    assert collect([], tmp_path, path) == 2 and not capsys.readouterr().err
    path.write_text(f"{first}\n{second[:-5]}")
    assert collect([], tmp_path, path) == 1
    assert capsys.readouterr().err == f"{path}: line 2, the last, was cut off and is left out\n"
    assert path.read_text() == f"{first}\n"


def test_other_runners_keep_rows_while_a_page_is_drawn(tmp_path, monkeypatch):
    path = write(tmp_path)
    report = cli.report

    def report_while_others_write(experiment, scale, results):
        FolderLock(cli.rows_file(experiment, scale, results).parent).release()
        return report(experiment, scale, results)

    monkeypatch.setattr(cli, "report", report_while_others_write)
    run(path)
    assert len(rows_of(path)) == 2


def test_a_folder_that_others_hold_is_waited_for(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(FolderInUse), held(tmp_path, 0.0):
        pass
    assert not is_free(tmp_path) and is_free(tmp_path / "nothing")
    lock.release()
    assert is_free(tmp_path)
    with held(tmp_path, 0.0), pytest.raises(FolderInUse):
        FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_a_network_of_which_nothing_is_asked_is_not_loaded(tmp_path, monkeypatch):
    """It may name code of the user's, which only training may import without --trust."""
    monkeypatch.setattr(checkpoint, "read", lambda path: pytest.fail("loaded"))
    cell = one_cell(tmp_path, verify={}, columns={})
    assert do(cell, tmp_path) and row_of_cell(cell, tmp_path)["verify"] == {}


OWN_CODE = """
from torch import nn
from expressive_losses.losses.mtl_ibp import MTLIBP
from expressive_losses.registry import LOSSES

@LOSSES.register("mtl_of_mine")
class Mine(MTLIBP):
    "A loss of somebody's own."

def network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, classes))
"""


def test_a_cell_of_somebodys_own_loss_and_network_is_verified_measured_and_adopted(tmp_path, own_module):
    """Who runs a grid trusts the code that it names; the commands of the row say so."""
    own_code = own_module("code_of_mine", OWN_CODE)
    mine = {"plugins": [own_code], "method.name": "mtl_of_mine", "model": f"{own_code}:network"}
    cell = one_cell(tmp_path, measures=["losses"], scales={"smoke": {"set": {**SMALL, **mine}}})
    assert do(cell, tmp_path)
    row = row_of_cell(cell, tmp_path)
    assert row["verify"]["ibp"]["images"] == 8 and row["measures"]["losses"]
    assert row["then"][0].endswith(f"--trust {own_code} --trust {own_code}:network")
    run_, verified = tmp_path / cell.key / "run", tmp_path / cell.key / cell.verify_folder("ibp")
    shutil.copytree(run_, tmp_path / "by_hand")
    shutil.copytree(verified, tmp_path / "by_hand" / "verify-ibp")
    assert adopt(tmp_path / "by_hand", [cell], tmp_path / "other") == ["network", "verify-ibp"]


def test_a_cell_whose_network_asks_for_other_code_is_refused(tmp_path):
    cell = one_cell(tmp_path)
    do(cell, tmp_path)
    model = tmp_path / cell.key / "run" / "model.pt"
    payload = torch.load(model, weights_only=True)
    checkpoint.save(model, {**payload, "config": {**payload["config"], "plugins": ["antigravity"]}})
    with pytest.raises(UserError, match="asks to import code: antigravity"):
        do(cell, tmp_path)
    with pytest.raises(UserError, match="asks to import code: antigravity"):
        measures.measure("losses", model, torch.device("cpu"), None)
    assert "antigravity" not in sys.modules
