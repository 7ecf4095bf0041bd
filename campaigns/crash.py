"""Kill training and verification at random moments and in every other way, resume, and compare with a run left alone.

    python -m campaigns.crash                 50 SIGKILLs each of training and of verification, and the rest
    python -m campaigns.crash --kills 4       the same in a minute

What must hold afterwards: the weights are bit-identical, metrics and ledger are complete and have no row twice, no
half-written file is left, and whatever went wrong was said in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from campaigns.processes import NoDisk, be_nobody, become, end, enlarge, limit_files, run, signal_after, tiny_disk
from expressive_losses import checkpoint
from expressive_losses.bounds import compat
from expressive_losses.cli import train_main, verify_main
from expressive_losses.run import RunDirectory, environment
from expressive_losses.verify.ledger import Ledger

TRAIN = (
    "--quiet --device cpu --epochs 6 --set model.width=4 --set model.hidden=16 --set training.batch_size=256 "
    "--set training.evaluate_every=3 --set test_attack.steps=2 --set eps.schedule.length=0.5"
).split()
VERIFY = "--quiet --device cpu --bound ibp,crown --eps 0.2 --first 40 --batch-size 4 --set pgd.steps=3".split()
#: Files that a run leaves. A kill may leave the lock and the parts of a write behind; a finished run has no parts.
LEFT = {".lock", "config.yaml", "environment.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.previous.pt",
        "model.pt", "summary.json", "curves.png"}  # fmt: skip


@dataclass
class Campaign:
    """What was tried and what went wrong."""

    folder: Path
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.whole = self.folder / "whole"
        self.proofs = self.folder / "proofs"
        compat.load()
        self.train_seconds = self._reference(train_main, [*TRAIN, "--out", str(self.whole)])
        self.verify_arguments = [*VERIFY, "--model", str(self.whole / "model.pt")]
        self.verify_seconds = self._reference(verify_main, [*self.verify_arguments, "--out", str(self.proofs)])

    def _reference(self, main, arguments) -> float:
        """Run in this process, which has then imported all that its forks need."""
        assert main(arguments) == 0
        shutil.rmtree(arguments[-1])
        ended = run(main, arguments)
        assert ended.code == 0, ended.said
        return ended.seconds

    def check(self, what: str, holds: bool, said: str = "") -> bool:
        """Count a trial's outcome."""
        if not holds:
            short = " ".join(said.replace(f"{Path.cwd()}/", "").split())  # rows name no folders of this machine
            self.failures.append(f"{what}: {short[-400:]}")
        return holds

    def count(self, name: str) -> None:
        """Count a trial."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def moment(self, seconds: float) -> float:
        """Return a random moment of a run."""
        return self.random.uniform(0, seconds)

    def kill_training(self, signal_: int, code: int, name: str) -> None:
        """Send a signal at a random moment, twice in a third of the trials; resume; compare."""
        self.count(name)
        out = self.folder / "trial"
        arguments = [*TRAIN, "--resume", "--out", str(out)]
        for _ in range(1 + (self.random.random() < 0.33)):
            ended = run(train_main, arguments, (self.moment(self.train_seconds), signal_))
            self.check(f"{name} exit code {ended.code}", ended.code in (0, code), ended.said)
            self.check(f"{name} traceback", "Traceback" not in ended.said, ended.said)
        self.finish_training(name, out)

    def finish_training(self, name: str, out: Path, *words: str) -> str:
        """Resume to the end and compare with the run left alone; return what was said."""
        ended = run(train_main, [*TRAIN, "--resume", "--out", str(out), *words])
        if self.check(f"{name}: resume", ended.code == 0, ended.said):
            self.compare_training(name, out)
        shutil.rmtree(out)
        return ended.said

    def compare_training(self, name: str, out: Path) -> None:
        """Weights bit by bit, metrics row by row, figures, and no file that does not belong there."""
        for file in ("model.pt", "checkpoint.pt"):
            ours, theirs = (checkpoint.read(folder / file)["weights"] for folder in (out, self.whole))
            same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
            self.check(f"{name}: {file}", same)
        self.check(f"{name}: metrics", _rows(out / "metrics.jsonl") == _rows(self.whole / "metrics.jsonl"))
        self.check(f"{name}: summary", _figures(out) == _figures(self.whole))
        files = {path.name for path in out.iterdir()}
        self.check(f"{name}: files", files <= LEFT, str(files - LEFT))

    def kill_verification(self, signal_: int, code: int, name: str) -> None:
        """The same for a ledger."""
        self.count(name)
        out = self.folder / "ledger"
        arguments = [*self.verify_arguments, "--resume", "--out", str(out)]
        for _ in range(1 + (self.random.random() < 0.33)):
            ended = run(verify_main, arguments, (self.moment(self.verify_seconds), signal_))
            self.check(f"{name} exit code {ended.code}", ended.code in (0, code), ended.said)
            self.check(f"{name} traceback", "Traceback" not in ended.said, ended.said)
        self.finish_verification(name, out)

    def finish_verification(self, name: str, out: Path) -> None:
        """Resume to the end; compare rows, counterexamples and figures."""
        ended = run(verify_main, [*self.verify_arguments, "--resume", "--out", str(out)])
        if self.check(f"{name}: resume", ended.code == 0, ended.said):
            self.check(f"{name}: rows", _rows(out / "ledger.jsonl") == _rows(self.proofs / "ledger.jsonl"))
            self.check(f"{name}: counterexamples", _witnesses(out) == _witnesses(self.proofs))
            self.check(f"{name}: summary", _figures(out) == _figures(self.proofs))
        shutil.rmtree(out)

    def stopped_at_half(self) -> Path:
        """Return the folder of a run that was killed after its second checkpoint."""
        out = self.folder / "half"
        arguments = [*TRAIN, "--out", str(out)]
        ended = run(train_main, arguments, before=lambda: signal_after(RunDirectory, "save", 2, signal.SIGKILL))
        self.check("stopped at half", ended.code == -signal.SIGKILL, ended.said)
        return out

    def full_disk(self) -> None:
        """No file may grow beyond a size: the write fails, one line says so, the state of before is whole."""
        self.count("full disk")
        out = self.stopped_at_half()
        size = (out / "checkpoint.pt").stat().st_size
        limit = self.random.choice([0, 100, size // 2, size - 1])
        ended = run(train_main, [*TRAIN, "--resume", "--out", str(out)], before=lambda: limit_files(limit))
        self.check(f"full disk ({limit} bytes): exit {ended.code}", ended.refused, ended.said)
        self.finish_training("full disk", out)
        out = self.folder / "ledger"
        limit = self.random.choice([0, 300, 2000, 4000])
        arguments = [*self.verify_arguments, "--resume", "--out", str(out)]
        ended = run(verify_main, arguments, before=lambda: limit_files(limit))
        self.check(f"full disk, ledger ({limit} bytes): exit {ended.code}", ended.refused, ended.said)
        self.finish_verification("full disk, ledger", out)

    def on_tiny_disks(self, trials: int) -> None:
        """Fill file systems, where they may be mounted."""
        try:
            for _ in range(trials):
                self.full_tmpfs()
        except NoDisk as error:
            print(f"full disk, tmpfs: not run ({error})")

    def full_tmpfs(self) -> None:
        """The same on a file system that is really full; then there is room again, and the run goes on."""
        self.count("full disk, tmpfs")
        most = sum(path.stat().st_size for path in self.whole.iterdir()) // 1024
        for name, main, arguments, finish in (
            ("training", train_main, TRAIN, self.finish_training),
            ("verification", verify_main, self.verify_arguments, self.finish_verification),
        ):
            kilobytes = self.random.randrange(4, most if main is train_main else 40)
            with tiny_disk(self.folder / "disk", kilobytes) as disk:
                ended = run(main, [*arguments, "--resume", "--out", str(disk / "out")])
                said = f"full tmpfs ({kilobytes} KiB), {name}: exit {ended.code}"
                self.check(said, ended.refused or ended.code == 0, ended.said)
                if ended.code:
                    self.count(f"full disk, tmpfs: {name} stopped")
                enlarge(disk)
                finish(f"full tmpfs, {name}", disk / "out")

    def read_only(self) -> None:
        """A folder that may not be written to, for a user who is not root."""
        self.count("read-only folder")
        for name, main, arguments in (
            ("training", train_main, TRAIN),
            ("verification", verify_main, self.verify_arguments),
        ):
            out = self.folder / "theirs"
            out.mkdir(mode=0o755)
            ended = run(main, [*arguments, "--out", str(out)], before=be_nobody)
            self.check(f"read-only folder, {name}: exit {ended.code}", ended.refused, ended.said)
            self.check(f"read-only folder, {name}", list(out.iterdir()) == [])
            out.rmdir()

    def damaged(self, how: str) -> None:
        """A checkpoint that was cut or in which a bit was turned over: the one before is used, and that is said."""
        self.count(f"checkpoint {how}")
        out = self.stopped_at_half()
        path = out / "checkpoint.pt"
        content = bytearray(path.read_bytes())
        if how == "cut":
            content = content[: self.random.randrange(len(content))]
        else:
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        try:
            checkpoint.read(path)
            harmless = True  # a bit of the padding, or of a date
        except Exception:
            harmless = False
        loud = [word for word in TRAIN if word != "--quiet"]
        ended = run(train_main, [*loud, "--resume", "--out", str(out)])
        self.check(f"checkpoint {how}: exit {ended.code}", ended.code == 0, ended.said)
        said = "continuing from checkpoint.previous.pt" in ended.said
        self.check(f"checkpoint {how}: what is said", said or harmless, ended.said)
        if ended.code == 0:
            self.compare_training(f"checkpoint {how}", out)
        shutil.rmtree(out)

    def two_at_once(self) -> None:
        """A second process in the same folder is refused, and does no harm."""
        self.count("two processes")
        for main, arguments, owner, name in (
            (train_main, TRAIN, RunDirectory, "save"),
            (verify_main, self.verify_arguments, Ledger, "sync"),
        ):
            arguments = [*arguments, "--resume", "--out", str(self.folder / f"shared-{main.__name__}")]
            child = os.fork()
            if child == 0:
                stop = partial(signal_after, owner, name, 1, signal.SIGSTOP)
                become(main, arguments, stop, os.open(os.devnull, os.O_WRONLY))
            os.waitpid(child, os.WUNTRACED)  # it holds the folder while the second one tries
            ended = run(main, arguments)
            os.kill(child, signal.SIGCONT)
            self.check(f"two processes: exit {ended.code}", ended.code == 2, ended.said)
            self.check("two processes: what is said", "another process" in ended.said, ended.said)
            self.check("two processes: the first", end(child, None) == 0)
        self.finish_training("two processes", self.folder / "shared-train_main")
        self.finish_verification("two processes, ledger", self.folder / "shared-verify_main")

    def clock_jumps(self) -> None:
        """The time of day jumps by days, back and forth: nothing depends on it."""
        self.count("clock jumps")

        def jump() -> None:
            real, jumps = time.time, random.Random(1)
            time.time = lambda: real() + jumps.uniform(-1e6, 1e6)

        out = self.folder / "late"
        ended = run(train_main, [*TRAIN, "--out", str(out)], before=jump)
        self.check("clock jumps", ended.code == 0, ended.said)
        self.finish_training("clock jumps", out)
        ended = run(verify_main, [*self.verify_arguments, "--out", str(out)], before=jump)
        self.check("clock jumps, ledger", ended.code == 0, ended.said)
        self.finish_verification("clock jumps, ledger", out)

    def run_all(self, kills: int, others: int) -> Campaign:
        """Kill so many times, and do everything else so many times that is random too."""
        for _ in range(kills):
            self.kill_training(signal.SIGKILL, -signal.SIGKILL, "SIGKILL, training")
            self.kill_verification(signal.SIGKILL, -signal.SIGKILL, "SIGKILL, verification")
        for _ in range(others):
            self.kill_training(signal.SIGTERM, 143, "SIGTERM, training")
            self.kill_verification(signal.SIGTERM, 143, "SIGTERM, verification")
            self.kill_training(signal.SIGINT, 130, "Ctrl-C, training")
            self.kill_verification(signal.SIGINT, 130, "Ctrl-C, verification")
            self.full_disk()
            self.damaged("cut")
            self.damaged("with a bit turned over")
        if os.getuid() == 0:
            self.read_only()
            self.on_tiny_disks(others)
        self.two_at_once()
        self.clock_jumps()
        return self


def _rows(path: Path) -> list[dict]:
    """Return the rows but for what differs between any two runs: times, and the processes that wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "made_with")} for row in rows]


def _figures(folder: Path) -> dict:
    return _without_times(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def _without_times(value):
    """Drop what differs between any two runs, at any depth: times, places, and the processes that wrote."""
    other = ("training_seconds", "checkpoint", "made_with")
    if not isinstance(value, dict):
        return value
    return {key: _without_times(inner) for key, inner in value.items() if key not in other and "seconds" not in key}


def _witnesses(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "witnesses").glob("*"))}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 when something was lost or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs each of training and of verification")
    parser.add_argument("--others", type=int, help="trials of each other kind; default a fifth of that")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="append a row to this file")
    options = parser.parse_args(arguments)
    others = max(1, options.kills // 5) if options.others is None else options.others
    torch.set_num_threads(1)  # a fork of a process with threads may hang
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        campaign = Campaign(Path(folder), options.seed).run_all(options.kills, others)
    print("\n".join(f"{count:>5}  {name}" for name, count in campaign.counts.items()))
    print("\n".join([f"{len(campaign.failures)} failures", *campaign.failures]))
    if options.out:
        about = environment(torch.device("cpu"))
        row = {
            "campaign": "crash",
            "command": f"python -m campaigns.crash --kills {options.kills} --others {others} --seed {options.seed}",
            "trials": campaign.counts,
            "failures": campaign.failures,
            "seconds": round(time.monotonic() - started, 1),
            **{key: about[key] for key in ("time", "git", "device", "torch", "auto_LiRPA", "python")},
        }
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return int(bool(campaign.failures))


if __name__ == "__main__":
    sys.exit(main())
