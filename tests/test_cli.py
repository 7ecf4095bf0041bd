"""The two commands as a person types them: what they print, what they leave, and how they fail."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expressive_losses import checkpoint
from expressive_losses.cli import train_main, verify_main
from expressive_losses.cli.train import train_summary
from expressive_losses.errors import Interrupted, is_out_of_memory
from expressive_losses.registry import VERIFIERS

ROOT = Path(__file__).parent.parent
QUICK = "--quiet --epochs 2 --set model.width=4 --set model.hidden=16 --set training.batch_size=256 --device cpu"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory of a small network."""
    out = tmp_path_factory.mktemp("run")
    assert train_main(shlex.split(f"--method mtl_ibp --alpha 0.2 {QUICK} --out {out}")) == 0
    return out


def fails(main, line, capsys) -> str:
    """Run a command that must fail as a user's mistake: exit code 2, one line, no traceback; return the line."""
    try:
        code = main(shlex.split(line))
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_train_then_verify_as_typed_in_the_readme(trained, capsys):
    assert verify_main(shlex.split(f"--model {trained} --bound crown --first 30 --device cpu")) == 0
    printed = capsys.readouterr().out
    assert "eps 0.1, into" in printed
    for word in ("natural", "adversarial", "verified", "decided by", "crown", "unknown"):
        assert word in printed
    folder = trained / "verify-crown-eps0.1-test"
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == summary["images"] == 30
    assert summary["verified"]["count"] == sum(row["status"] == "verified" for row in rows)
    assert summary["verified"]["count"] <= summary["adversarial"]["count"] <= summary["natural"]["count"]


def test_counterexamples_are_in_the_box_and_fool_the_plain_network(trained):
    out = trained / "attacked"
    assert verify_main(shlex.split(f"--model {trained} --bound ibp --eps 0.3 --first 60 --out {out} --quiet")) == 0
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()[1:]]
    falsified = [row for row in rows if row["status"] == "falsified"]
    assert falsified
    network = checkpoint.network_of(checkpoint.read(trained / "model.pt"))
    for row in falsified:
        witness = torch.from_numpy(np.load(out / row["witness"]))[None]
        assert network(witness).argmax() != row["label"]


def test_resume_of_a_cut_ledger_completes_it(trained, capsys):
    out = trained / "resumed"
    line = f"--model {trained} --bound ibp --first 40 --out {out} --quiet --batch-size 10"
    assert verify_main(shlex.split(line)) == 0
    ledger = out / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole[: len(whole) * 2 // 3])  # ends in a torn line
    assert "--resume" in fails(verify_main, line, capsys)
    assert verify_main(shlex.split(line + " --resume")) == 0
    strip = [{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in ledger.read_text().splitlines()]
    assert strip == [{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in whole.splitlines()]


def test_ledger_of_another_radius_is_refused(trained, capsys):
    out = trained / "other"
    assert verify_main(shlex.split(f"--model {trained} --bound ibp --first 10 --out {out} --quiet")) == 0
    line = f"--model {trained} --bound ibp --first 10 --out {out} --quiet --resume --eps 0.2"
    assert "eps" in fails(verify_main, line, capsys)


def test_shards_merge_to_the_whole_run_and_check(trained, capsys):
    out = trained / "sharded"
    line = f"--model {trained} --bound ibp --first 30 --batch-size 10 --quiet"
    for number in range(2):
        assert verify_main(shlex.split(f"{line} --shard {number}/2 --out {out}")) == 0
    missing = fails(verify_main, f"merge {out / 'shard-0-of-2'} --out {trained / 'half'}", capsys)
    assert "30" in missing or "no row" in missing or "missing" in missing
    merged = trained / "merged"
    assert verify_main(shlex.split(f"merge {out / 'shard-0-of-2'} {out / 'shard-1-of-2'} --out {merged}")) == 0
    assert json.loads((merged / "summary.json").read_text())["images"] == 30
    capsys.readouterr()
    assert verify_main(shlex.split(f"check {merged} --model {trained} --bounds --attack pgd")) == 0
    assert "30 rows agree with the network" in capsys.readouterr().out


def test_shards_of_radii_merge_to_the_whole_run(trained, capsys):
    out, merged, whole = (trained / name for name in ("radii", "radii-merged", "radii-whole"))
    line = f"--model {trained} --bound ibp --radius --eps 0.2 --first 10 --batch-size 1 --quiet"
    for part in ("", " --shard 0/2", " --shard 1/2"):
        assert verify_main(shlex.split(f"{line} --out {out if part else whole}{part}")) == 0
    assert "gap" in fails(verify_main, f"merge {out / 'shard-1-of-2'} --out {merged}", capsys)
    join = f"merge {out / 'shard-0-of-2'} {out / 'shard-1-of-2'} --out {merged}"
    assert verify_main(shlex.split(join)) == 0
    assert "certified %" in capsys.readouterr().out
    both = [[json.loads(line) for line in (one / "radius.jsonl").read_text().splitlines()] for one in (whole, merged)]
    strip = [[{key: value for key, value in row.items() if key != "seconds"} for row in rows] for rows in both]
    assert strip[0] == strip[1]
    assert "is there already" in fails(verify_main, join, capsys)


def test_check_notices_a_row_that_was_changed_by_hand(trained, capsys):
    out = trained / "tampered"
    assert verify_main(shlex.split(f"--model {trained} --bound ibp --eps 0.3 --first 30 --out {out} --quiet")) == 0
    ledger = out / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"falsified"', '"verified"'))
    assert "contradicted" in fails(verify_main, f"check {out} --model {trained}", capsys)


def test_radius_report_and_export(trained, capsys):
    out = trained / "tools"
    line = f"--model {trained} --bound ibp --first 10 --out {out} --quiet"
    assert verify_main(shlex.split(line + " --radius --eps 0.2")) == 0
    assert verify_main(shlex.split(line + " --report")) == 0
    files = {"radius.jsonl", "radius.json", "radius.png", "report.html", "report.md"}
    assert files <= {path.name for path in out.iterdir()}
    capsys.readouterr()
    assert verify_main(shlex.split(f"check {out} --model {trained} --bounds --attack pgd")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "radii hold in float64" in printed[0] and "bounds hold in float64" in printed[1]
    pytest.importorskip("onnx", reason="export needs the package onnx")
    assert verify_main(shlex.split(f"export --model {trained} --first 2 --out {out / 'onnx'}")) == 0
    assert len((out / "onnx" / "instances.csv").read_text().splitlines()) == 2


def test_list_and_help(capsys):
    assert train_main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("mtl_ibp", "cnn7", "digits", "pgd", "smoothed", "adam"))
    assert verify_main(["--list"]) == 0
    assert "crown" in capsys.readouterr().out
    for main in (train_main, verify_main):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0
        assert "pixel units" in capsys.readouterr().out


def test_arguments_are_understood_before_torch_is_imported():
    program = """
import sys
from expressive_losses.cli import train_main, verify_main
assert train_main(["--nope"]) == verify_main(["--first", "0"]) == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--method mtl_ipb", "did you mean 'mtl_ibp'"),
        ("--alpha 2", "alpha"),
        ("--method standard --alpha 0.5", "unknown key 'alpha'"),
        ("--eps 8", "did you mean 8/255"),
        ("--dataset mnits", "did you mean 'mnist'"),
        ("--model cnn77", "did you mean 'cnn7'"),
        ("--model no.such:thing", "no.such"),
        ("--config no/such.yaml", "cannot read the config"),
        ("--set training.epochs", "expected key=value"),
        ("--device gpu9", "--device gpu9"),
        ("--dataset mnist --data-dir /nonexistent", "mnist"),
        ("--epochs many", "invalid int value"),
        ("--metod ibp", "unrecognized arguments"),
        ("--seed -1", "seed"),
    ],
)
def test_mistakes_in_train(line, message, capsys, tmp_path):
    assert message in fails(train_main, f"{line} --out {tmp_path / 'run'}", capsys)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "--model is missing"),
        ("--model nowhere.pt", "cannot read the checkpoint"),
        ("--model {model} --bound crwn", "did you mean 'crown'"),
        ("--model {model} --eps 2", "did you mean 2/255"),
        ("--model {model} --first 0", "positive"),
        ("--model {model} --split validation", "without a validation split"),
        ("--model {model} --set restarts=3", "stage.key=value"),
        ("--model {model} --set pgd.restart=3", "did you mean 'restarts'"),
        ("--model {model} --dataset mnist --data-dir /nonexistent", "mnist"),
        ("--model {text}", "not a checkpoint"),
        ("--model {foreign}", "no 'format'"),
        ("--model {newer}", "newer than this package"),
        ("--model {pickle}", "could run code"),
        ("--model {nan}", "not finite"),
        ("--model {misfit}", "do not fit the model"),
        ("--model {code}", "asks to import code: os:system; if you know and trust it, add --trust os:system"),
        ("--model {plugin}", "asks to import code: antigravity"),
    ],
)
def test_mistakes_in_verify(trained, line, message, capsys, tmp_path):
    payload = checkpoint.read(trained / "model.pt")
    files = {
        name: tmp_path / f"{name}.pt"
        for name in ("text", "foreign", "newer", "pickle", "nan", "misfit", "code", "plugin")
    }
    files["text"].write_text("hello")
    torch.save({"weight": torch.zeros(3)}, files["foreign"])
    torch.save({**payload, "format": 99}, files["newer"])
    torch.save({**payload, "code": torch.nn.Linear(1, 1)}, files["pickle"])
    weights = {name: value.clone() for name, value in payload["weights"].items()}
    weights["0.weight"][0] = torch.nan
    torch.save({**payload, "weights": weights}, files["nan"])
    torch.save({**payload, "model": {"name": "cnn_tiny", "width": 5, "hidden": 16}}, files["misfit"])
    shell = {"name": "factory", "path": "os:system", "kwargs": {"command": f"touch {tmp_path / 'hacked'}"}}
    torch.save({**payload, "model": shell}, files["code"])
    torch.save({**payload, "config": {**payload["config"], "plugins": ["antigravity"]}}, files["plugin"])
    line = line.format(model=trained, **files)
    assert message in fails(verify_main, f"{line} --out {tmp_path / 'out'}", capsys)
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "hacked").exists()


def test_a_factory_of_ones_own_trains_and_verifies_when_trusted(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\ndef make(classes, hidden=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    line = f"--model my_net:make --set model.hidden=12 --epochs 2 --quiet --device cpu --out {out}"
    assert train_main(shlex.split(line)) == 0
    assert "--trust my_net:make" in fails(verify_main, f"--model {out} --bound ibp --first 5 --quiet", capsys)
    assert verify_main(shlex.split(f"--model {out} --bound ibp --first 5 --quiet --trust my_net:make")) == 0


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """A write that fails midway is reported in one line and the file of before is still whole."""
    from expressive_losses.errors import UserError

    path = tmp_path / "model.pt"
    checkpoint.save(path, {"format": 1, "value": torch.ones(3)})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(path, {"format": 1, "value": torch.zeros(3)})
    assert torch.equal(torch.load(path, weights_only=True)["value"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("main", [train_main, verify_main])
def test_ctrl_c_before_torch_is_there_is_one_line(main, monkeypatch, capsys):
    monkeypatch.setattr("expressive_losses.cli._parsed", raising(KeyboardInterrupt))
    assert main(["--model", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def raising(error: type[BaseException]):
    def stopped(*_):
        raise error

    return stopped


@pytest.mark.parametrize(
    "name, line, go_on",
    [
        ("train", "--out x", "continue with --resume"),
        ("train", "--dry-run", ""),
        ("train", "--list", ""),
        ("verify", "--model x", "continue with --resume"),
        ("verify", "--list", ""),
        ("verify", "check folder --model x", ""),
        ("experiments", "run a.yaml", "the same command goes on from there"),
        ("experiments", "run a.yaml --dry-run", ""),
        ("experiments", "sweep a.yaml", "the same command goes on from there"),
        ("experiments", "report a.yaml", ""),
    ],
)
def test_only_what_saves_its_work_says_how_to_go_on(name, line, go_on, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *shlex.split(line)])

    def program() -> int:
        if name != "experiments":
            return {"train": train_main, "verify": verify_main}[name]()
        with pytest.raises(SystemExit) as end:
            runpy.run_module("expressive_losses.experiments", run_name="__main__")
        return end.value.code

    command = {"experiments": "expressive_losses.experiments.cli.main"}.get(
        name, f"expressive_losses.cli.{name}.{name}"
    )
    monkeypatch.setattr(command, raising(KeyboardInterrupt))
    assert program() == 130
    assert capsys.readouterr().err == (f"interrupted; {go_on}\n" if go_on else "interrupted\n")
    monkeypatch.setattr(command, raising(Interrupted))
    assert program() == 143
    stopped = f"stopped; what was done by then is saved, {go_on}\n" if go_on else "stopped\n"
    assert capsys.readouterr().err == stopped


def test_sigterm_in_a_dry_run_promises_nothing():
    program = """
import os, signal
from expressive_losses.cli import train, train_main
train.dry_run = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
train_main(["--dry-run"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "stopped\n")


def test_a_reader_that_has_seen_enough_is_no_error():
    """train.py --list | head -1"""
    program = [sys.executable, str(Path(__file__).parent.parent / "train.py"), "--list"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() in (0, 141)


def test_the_command_printed_after_training_can_be_pasted(tmp_path):
    """A path with a space is quoted, the folder of the data is named."""
    figures = dict.fromkeys(("natural", "adversarial", "ibp", "training_seconds"), 1.0)
    names = {"method": {"name": "ibp"}, "data": "mnist", "eps": "0.1", "images": 10, "split": "test"}
    printed = train_summary({**figures, **names, "checkpoint": tmp_path / "a b" / "model.pt"}, Path("my data"))
    words = shlex.split(printed.splitlines()[-1])
    assert words[:4] == ["python", "verify.py", "--model", str(tmp_path / "a b" / "model.pt")]
    assert words[-2:] == ["--data-dir", "my data"]


def test_the_command_printed_after_training_trusts_the_code_that_was_trained(tmp_path, monkeypatch, capsys):
    """Run as printed, it verifies a network of the user's own."""
    (tmp_path / "ours.py").write_text(
        "from torch import nn\n"
        "def small(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    quick = f"--epochs 2 --set training.batch_size=256 --device cpu --out {tmp_path / 'run'}"
    assert train_main(shlex.split(f"--method ibp --model ours:small {quick}")) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[-2:] == ["--trust", "ours:small"]
    assert verify_main([*words[2:], "--first", "10", "--quiet", "--device", "cpu"]) == 0


def test_training_refuses_a_network_that_its_fast_path_reads_wrongly(tmp_path, monkeypatch, capsys):
    """Before anything is written."""
    from expressive_losses.bounds import network

    wrong = network.frozen_logits
    monkeypatch.setattr(network, "frozen_logits", lambda *given: lambda x: 1.1 * wrong(*given)(x))
    line = fails(train_main, f"--method ibp {QUICK} --out {tmp_path / 'run'}", capsys)
    assert "fast path" in line and "report it" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_network_without_relus_is_trained_and_verified(tmp_path):
    """Shi et al.'s regulariser is about ReLUs: it is 0 here."""
    options = f"--epochs 2 --set training.batch_size=256 --device cpu --quiet --out {tmp_path / 'run'}"
    assert train_main(["--method", "ibp", "--set", "model={name: mlp, hidden: []}", *shlex.split(options)]) == 0
    assert verify_main(shlex.split(f"--model {tmp_path / 'run'} --first 10 --bound cascade --quiet")) == 0


@pytest.mark.parametrize(
    "words, told",
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_words_for_too_little_memory(words, told):
    assert is_out_of_memory(RuntimeError(words)) == told


def test_verifications_on_two_data_sets_have_two_folders(trained):
    for more in ("", "--dataset digits"):
        assert verify_main(shlex.split(f"--model {trained} --bound clean,ibp --first 5 --quiet {more}")) == 0
    folders = {path.parent.name for path in trained.glob("verify-clean+ibp-*/ledger.jsonl")}
    assert folders == {"verify-clean+ibp-eps0.1-test", "verify-clean+ibp-eps0.1-digits-test"}


def test_a_report_of_radii_alone_says_what_is_missing(trained, capsys):
    out = trained / "radii"
    assert verify_main(shlex.split(f"--model {trained} --bound ibp --radius --first 3 --out {out} --quiet")) == 0
    assert "holds certified radii only" in fails(verify_main, f"report {out}", capsys)


OWN_BOUND = """
from typing import ClassVar
from expressive_losses.registry import VERIFIERS
from expressive_losses.verify.base import DEFAULT_TOLERANCE, Verifier, verdict_of_bounds

@VERIFIERS.register("bound-of-mine")
class MyBound(Verifier):
    "Intervals."

    kind: ClassVar = "bound"
    tolerance: float = DEFAULT_TOLERANCE

    def __call__(self, network, problem):
        return verdict_of_bounds(problem, network.margins(problem.box, problem.labels, "ibp"), self.tolerance)
"""


def test_what_a_verifier_of_ones_own_wrote_is_checked_and_reported(trained, tmp_path, own_module, capsys):
    own_bound = own_module("bound_of_mine", OWN_BOUND)
    where = f"--model {trained} --plugin {own_bound}"
    out = tmp_path / "verified"
    run = f"{where} --first 10 --bound clean,bound-of-mine --set bound-of-mine.tolerance=1e-3 --quiet --out {out}"
    assert verify_main(shlex.split(run)) == 0
    VERIFIERS._entries.pop("bound-of-mine")
    sys.modules.pop(own_bound)
    assert "unknown bound 'bound-of-mine'" in fails(verify_main, f"check {out} --model {trained} --bounds", capsys)
    for line in (f"check {out} {where} --bounds", f"report {out} --plugin {own_bound}", f"report {out} {where}"):
        assert verify_main(shlex.split(line)) == 0
    assert verify_main(["--list", "--plugin", own_bound]) == 0
    assert "bound-of-mine" in capsys.readouterr().out
    assert "no_such_module" in fails(verify_main, f"{where} --plugin no_such_module --out {tmp_path / 'no'}", capsys)


def test_the_example_in_python_gives_the_rows_of_the_command(trained, tmp_path, monkeypatch):
    section = (ROOT / "docs" / "verification.md").read_text().partition("## From Python")[2]
    load, run = (block.partition("```")[0] for block in section.split("```python")[1:])
    monkeypatch.chdir(tmp_path)
    load = load.replace("model.pt", str(trained / "model.pt"))
    run = run.replace('first=1000, dtype="float64", device="cuda", budget=3600', "first=20")
    (tmp_path / "example.py").write_text(load + run)
    runpy.run_path(str(tmp_path / "example.py"))
    line = f"--model {trained} --bound crown --eps 0.1 --first 20 --quiet --out {tmp_path / 'ours'}"
    assert verify_main(shlex.split(line)) == 0
    rows = [
        [{**json.loads(row), "seconds": 0} for row in (out / "ledger.jsonl").read_text().splitlines()[1:]]
        for out in (tmp_path / "results" / "mine", tmp_path / "ours")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 20


def test_under_torchrun_the_program_ends_at_once_but_not_whoever_calls_it(monkeypatch):
    ends = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr("os._exit", ends.append)
    assert train_main(["--list"]) == 0 and not ends
    for words in (["--list"], ["--no-such-option"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        train_main()
    assert ends == [0]
