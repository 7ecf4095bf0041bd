"""Where the time and the memory of training go, and how they grow. JSON rows on stdout.

    python benchmarks/training.py steps  > results/training_steps.jsonl     every method, network and image shape
    python benchmarks/training.py memory > results/memory.jsonl             peak memory, one process a row
    python benchmarks/training.py growth > results/scaling.jsonl            against depth, width, classes, batch
    python benchmarks/training.py table                                     the tables of docs/performance.md

Images are random: neither time nor memory depends on what they show. All figures are of a step after the ramp (for
``growth`` and ``memory`` within it, where the regulariser costs most). On a CPU the time is the processor's, on the
threads that are named in the row: on a machine with nothing else to do it passes as fast. ``floor_ms`` is the step's
convolutions and matrix products at the rate of the machine's best (1024 x 1024 matrices, measured beside it). Updates
are not captured here; benchmarks/gpu.py compares.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances, in_a_process, peak_mib, resident_mib

from expressive_losses import config as configs
from expressive_losses import experiment, step
from expressive_losses.allocator import keep_freed_memory
from expressive_losses.bounds.products import product
from expressive_losses.cli.dry_run import _FlopCounter
from expressive_losses.data.base import ImageData
from expressive_losses.data.batches import Batches
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
#: Network, image shape, batch.
SETUPS = (
    ("cnn_small", MNIST, 256), ("cnn_small", CIFAR, 256), ("dm_small", MNIST, 128), ("dm_small", CIFAR, 128),
    ("cnn7", MNIST, 16), ("cnn7", CIFAR, 16),
)  # fmt: skip
METHODS = (
    "standard", "adversarial", "ibp", "mtl_ibp", "cc_ibp", "exp_ibp", "sabr", "adv_ibp", "trades", "crown_ibp",
)  # fmt: skip
#: CROWN-IBP bounds during the ramp are what the method costs; after it, it is IBP.
EXTRA = {"crown_ibp": ("method.beta_end=1",)}


def main() -> None:
    """Print the rows of one part, or the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("steps", "memory", "growth", "one", "table"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="networks (for growth: sizes), with commas between")
    parser.add_argument("--batch", type=int, help="in place of the usual ones, which are for a CPU")
    parser.add_argument("--missing", action="store_true", help="memory: only what has no row in results/ yet")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "table":
        print(tables())
        if options.write:
            DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
        return
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.part == "one":
        print(json.dumps(memory_of(**json.loads(options.row))))
        return
    for row in {"steps": steps, "memory": memory, "growth": growth}[options.part](options):
        print(json.dumps({**row, **circumstances()}), flush=True)


def chosen(options: argparse.Namespace) -> list[tuple[str, tuple[int, ...], int]]:
    """Return the setups that were asked for."""
    asked = [setup for setup in SETUPS if not options.only or setup[0] in options.only.split(",")]
    return [(network, shape, options.batch or batch) for network, shape, batch in asked]


def steps(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each method on each setup, the methods of a setup in turn."""
    rate = matrix_rate(options.device)
    for network, shape, batch in chosen(options):
        trainers = {
            method: trainer_of(network, shape, batch, method, EXTRA.get(method, ()), device=options.device)
            for method in METHODS
        }
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for turn in range(options.rounds + 1):
            for method, trainer in trainers.items():
                taken = seconds_of(trainer, _END)
                if turn > 0:
                    seconds[method].append(taken)
        base = median(seconds["standard"])
        for method, trainer in trainers.items():
            taken, flops = median(seconds[method]), flops_of(trainer, _END)
            yield {
                "network": network, "shape": shape, "batch": batch, "method": method, "rounds": options.rounds,
                "images": batch * options.rounds, "step_ms": round(1000 * taken, 2),
                "images_per_second": round(batch / taken, 1), "times_standard": round(taken / base, 2),
                "gflop": round(flops / 1e9, 3), "floor_ms": round(flops / rate * 1000, 2),
                "matrix_gflops": round(rate / 1e9, 1), "breakdown_ms": breakdown(trainer, _END),
            }  # fmt: skip


def memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the peak for each method, network and batch, in the ramp (with the regulariser).

    On a CPU each has a process of its own, whose peak it is; a GPU's peak can be set back.
    """
    batches = {"cnn_small": (64, 256), "dm_small": (32, 128), "cnn7": (16, 64)}
    known = rows_of(ROOT / "results" / "memory.jsonl") if options.missing else []
    done = {(row["network"], tuple(row["shape"]), row["batch"], row["method"]) for row in known}
    for network, shape, _ in chosen(options):
        for batch in batches[network]:
            for method in ("standard", "adversarial", "ibp", "mtl_ibp", "crown_ibp"):
                if (network, shape, batch, method) in done:
                    continue
                asked = {"network": network, "shape": shape, "batch": batch, "method": method, "device": options.device}
                command = [*sys.argv[:1], "one", "--threads", str(options.threads), "--row", json.dumps(asked)]
                found = in_a_process(command) if options.device == "cpu" else memory_of(**asked)
                yield {**asked, "images": batch, **found}


def growth(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield rows for MTL-IBP, one size changed at a time."""
    variations: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "depth": [(d, {"network": f"{{name: mlp, hidden: {[256] * d}}}"}) for d in (1, 2, 4, 8)],
        "width": [(w, {"network": f"{{name: cnn7, width: {w}, hidden: 512}}", "batch": 16}) for w in (8, 16, 32, 64)],
        "classes": [(k, {"network": "cnn_small", "classes": k}) for k in (10, 100, 200, 1000)],
        "batch": [(b, {"network": "cnn_small", "batch": b}) for b in (32, 64, 128, 256, 512)],
        "imagenet64": [(64, {"network": "cnn7", "shape": (3, 64, 64), "batch": 8, "classes": 1000})],
        "side": [(s, {"network": "cnn_small", "shape": (3, s, s), "batch": 64}) for s in (16, 32, 64)],
    }
    for name in options.only.split(",") if options.only else variations:
        values = variations[name]
        for value, change in values:
            asked = {"network": "cnn_small", "shape": MNIST, "batch": 128, "method": "mtl_ibp", **change}
            trainer = trainer_of(**asked, device=options.device)
            taken = median([seconds_of(trainer, _RAMP) for _ in range(options.rounds + 1)][1:])
            flops, asked = flops_of(trainer, _RAMP), {**asked, "device": options.device}
            found = in_a_process([*sys.argv[:1], "one", "--threads", str(options.threads), "--row", json.dumps(asked)])
            yield {
                "grows": name, "value": value, **asked, "images": asked["batch"] * options.rounds,
                "step_ms": round(1000 * taken, 2), "gflop": round(flops / 1e9, 3), **found,
            }  # fmt: skip


#: Steps of a run of eight epochs whose ramp ends after four.
_RAMP, _END = 0.3, 0.7


def trainer_of(
    network: str, shape: tuple[int, ...], batch: int, method: str, extra: tuple[str, ...] = (), classes: int = 10,
    device: str = "cpu",
) -> Trainer:  # fmt: skip
    """Return a trainer on random images, with the regularisers and the attack of the published recipes."""
    assignments = (
        f"method={method}", f"model={network}", f"training.batch_size={batch}", "training.epochs=8", "training.l1=1e-6",
        "eps={target: 0.1, schedule: {name: smoothed, warmup: 0, length: 4, unit: epochs}}",
        "attack={name: pgd, steps: 1, step_size: 10}", "training.capture=never",
    )  # fmt: skip
    config = configs.load(None, [configs.parse_assignment(text) for text in (*assignments, *extra)])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4 * batch, *shape), generator=generator, dtype=torch.uint8)
    data = ImageData.checked(images, torch.randint(classes, (len(images),), generator=generator), classes)
    torch.manual_seed(0)
    built = experiment.build_network(config, data).to(device)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.close()
        return Trainer(config, built, Batches(data, device=device), Batches(data, device=device), run, quiet=True)


def one_step(trainer: Trainer, progress: float) -> None:
    """Do one update at a share of the run."""
    trainer.step = int(progress * trainer.steps)
    indices = torch.arange(trainer.config.training.batch_size, device=trainer.train.device)
    trainer._add(trainer.train_step(indices, trainer.radii(trainer.step)))


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Return seconds: of the processor on a CPU, of the wall beside a GPU."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def seconds_of(trainer: Trainer, progress: float, count: int = 1) -> float:
    """Return the seconds of a step; a GPU is waited for at the end."""
    wait(trainer.train.device)
    began = clock(trainer.train.device)
    for _ in range(count):
        one_step(trainer, progress)
    wait(trainer.train.device)
    return (clock(trainer.train.device) - began) / count


def flops_of(trainer: Trainer, progress: float) -> int:
    """Return the floating-point operations of a step's convolutions and matrix products; a multiply-add is two."""
    with trainer.updates.one_by_one():
        one_step(trainer, progress)  # what is done once is no part of it
        with _FlopCounter() as counter:
            one_step(trainer, progress)
    return counter.total


def matrix_rate(device: str, size: int = 1024) -> float:
    """Return the operations a second of a product of two square matrices, the best of twenty."""
    a, best = torch.randn(size, size, device=device), float("inf")
    for _ in range(20):
        began = clock(a.device)
        product(a, a)
        wait(a.device)
        best = min(best, clock(a.device) - began)
    return 2 * size**3 / best


def breakdown(trainer: Trainer, progress: float) -> dict[str, float]:
    """Return the milliseconds of a step by what they are spent on; "other" is the loss, metrics and regularisers."""
    spent: dict[str, float] = defaultdict(float)
    places = {
        "data": (trainer.train, "batch"), "clean": (step, "_clean"), "adversarial": (step, "_adversarial"),
        "bounds": (step, "_bounds"), "attack": (type(trainer.config.attack), "__call__"),
        "backward": (type(trainer.config.method), "backward"), "optimiser": (trainer.updates.optimizer, "step"),
    }  # fmt: skip
    with trainer.updates.one_by_one(), timed(places, spent, trainer.train.device):
        total = seconds_of(trainer, progress)
    found = {name: round(1000 * seconds, 2) for name, seconds in spent.items()}
    return {**found, "other": round(1000 * total - sum(found.values()), 2)}


@contextmanager
def timed(places: dict[str, tuple[Any, str]], spent: dict[str, float], device: torch.device) -> Iterator[None]:
    """Add up the seconds of some functions while inside."""
    kept = {name: vars(owner).get(attribute) for name, (owner, attribute) in places.items()}
    for name, (owner, attribute) in places.items():
        setattr(owner, attribute, measured(getattr(owner, attribute), name, spent, device))
    try:
        yield
    finally:
        for name, (owner, attribute) in places.items():
            if kept[name] is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, kept[name])


def measured(function: Callable, name: str, spent: dict[str, float], device: torch.device) -> Callable:
    """Return the function with its seconds added to ``spent``."""

    def call(*arguments, **options):
        wait(device)
        began = clock(device)
        try:
            return function(*arguments, **options)
        finally:
            wait(device)
            spent[name] += clock(device) - began

    return call


def memory_of(
    network: str, shape: list[int], batch: int, method: str, device: str, classes: int = 10
) -> dict[str, int]:
    """Return the MiB that three steps of training add to a process (on a GPU: the most that was allocated there)."""
    one_step(trainer_of("cnn_tiny", MNIST, 4, "mtl_ibp", device=device), _RAMP)  # libraries are loaded by then
    before = resident_mib()
    if device != "cpu":
        gc.collect()  # graphs of autograd that hold each other
        torch.cuda.reset_peak_memory_stats()
    trainer = trainer_of(network, tuple(shape), batch, method, EXTRA.get(method, ()), classes, device)
    for _ in range(3):
        one_step(trainer, _RAMP)
    if device != "cpu":
        return {"added_mib": round(torch.cuda.max_memory_allocated() / 2**20)}
    return {"added_mib": round(peak_mib() - before), "process_mib": round(peak_mib())}


def tables() -> str:
    """Return the tables of docs/performance.md from the committed rows."""
    read = {name: rows_of(ROOT / "results" / f"{SOURCES.get(name, name)}.jsonl") for name in FILES}
    return "\n\n".join(
        f"<!-- {name}:begin -->\n{FILES[name](rows)}\n<!-- {name}:end -->" for name, rows in read.items()
    )


def with_tables(text: str) -> str:
    """Return the document with its tables made anew."""
    for section in tables().split("\n\n"):
        name = section.split(":", 1)[0].removeprefix("<!-- ")
        text = re.sub(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _, new=section: new, text, flags=re.DOTALL)
    return text


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def goals_table(rows: list[dict[str, Any]]) -> str:
    """What was to be reached beside the published code, and what was."""
    head = ("network", "batch", "phase", "times as fast", "goal", "", "share of its memory", "goal", "")
    lines = []
    for r in rows:
        faster, goal = round(1 / r["cpu_ratio"], 2), FASTER[r["network"]]
        verdicts = ["met" if met else "missed" for met in (faster >= goal, r["added_ratio"] <= LESS_MEMORY)]
        speed, memory = (faster, goal, verdicts[0]), (r["added_ratio"], LESS_MEMORY, verdicts[1])
        lines.append((r["network"], r["batch_size"], r["phase"], *speed, *memory))
    return markdown(head, lines)


def published_table(rows: list[dict[str, Any]]) -> str:
    """Time and memory beside the published code."""
    head = ("network", "batch", "phase", "images", "published CPU ms", "ours", "ratio", "ratio by the clock")
    lines = []
    for r in rows:
        times = (r["published_cpu_ms"], r["ours_cpu_ms"], r["cpu_ratio"], r["ratio"])
        memory = (f"{r['published_added_mib']} : {r['ours_added_mib']}", r["added_ratio"])
        lines.append((r["network"], r["batch_size"], r["phase"], r["images"], *times, *memory))
    return markdown((*head, "added MiB", "ratio of it"), lines)


def steps_table(rows: list[dict[str, Any]]) -> str:
    """Time of a step by method."""
    parts = ("data", "clean", "attack", "adversarial", "bounds", "backward", "optimiser", "other")
    head = ("network", "image", "batch", "method", "ms", "images/s", "x standard", "floor ms", *parts)
    return markdown(head, [
        (r["network"], "x".join(map(str, r["shape"])), r["batch"], r["method"], r["step_ms"], r["images_per_second"],
         r["times_standard"], r["floor_ms"], *(r["breakdown_ms"].get(part, "") for part in parts)) for r in rows
    ])  # fmt: skip


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Peak memory by network, method and batch."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    found: dict[tuple, dict[str, int]] = defaultdict(dict)
    for r in rows:
        found[r["network"], "x".join(map(str, r["shape"])), r["batch"]][r["method"]] = r["added_mib"]
    lines = [(*key, *(cells.get(method, "not run") for method in methods)) for key, cells in found.items()]
    return markdown(("network", "image", "batch", *methods), lines)


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Time and memory against one size at a time."""
    head = ("grows", "to", "network", "image", "batch", "ms", "GFLOP", "added MiB")
    return markdown(head, [
        (r["grows"], r["value"], r["network"].replace("{", "").replace("}", ""), "x".join(map(str, r["shape"])),
         r["batch"], r["step_ms"], r["gflop"], r["added_mib"]) for r in rows
    ])  # fmt: skip


#: Goals: times as fast as the published code, by processor time, and share of its memory.
FASTER, LESS_MEMORY = {"cnn_small": 1.5, "cnn7": 1.4}, 0.6
FILES = {
    "goals": goals_table,
    "training_speed": published_table,
    "training_steps": steps_table,
    "memory": memory_table,
    "scaling": growth_table,
}
#: Files of the rows, where they have another name than the table.
SOURCES = {"goals": "training_speed"}

if __name__ == "__main__":
    main()
