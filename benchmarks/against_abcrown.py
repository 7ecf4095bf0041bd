"""The cascade beside alpha-beta-CROWN on single images, one after the other. JSON rows on stdout.

    python benchmarks/against_abcrown.py model.pt --ledger runs/verify --abcrown DIR --python VENV/bin/python

The images are those of the ledger that no stage before branch-and-bound has decided. For each image the whole cascade
runs here, then alpha-beta-CROWN in a process of its own, on the same float32 weights, image, radius, time limit and
number of threads. Seconds are wall time of the verification; alpha-beta-CROWN's are those that it reports, without its
start; CPU seconds are those of its whole process. DIR is a checkout of Verified-Intelligence/alpha-beta-CROWN (GitHub)
with its submodule auto_LiRPA, VENV has what those need. The network is handed over as a torch module: its ONNX reader
needs a fork of onnx2pytorch that is on no package index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from rounding import circumstances

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.verify import Cascade, Problem, build_stages, read_ledger
from expressive_losses.verify.evaluation import computing_in

#: Of its configuration for a convolutional MNIST network (exp_configs/beta_crown/mnist_cnn_a_adv.yaml); the batch size
#: suits a CPU.
SETTINGS = {
    "general": {"device": "cpu", "complete_verifier": "bab"},
    "solver": {"batch_size": 256, "beta-crown": {"iteration": 20, "lr_beta": 0.005}},
    "attack": {"pgd_restarts": 50},
    "bab": {"branching": {"reduceop": "max"}},
}
#: Runs abcrown.py where the wheel of torchvision was built for another torch than the one installed.
START = """
import runpy, sys, torch
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
sys.path.insert(0, "")
sys.argv = ["abcrown.py", *sys.argv[1:]]
runpy.run_path("abcrown.py", run_name="__main__")
"""
#: weights_only=False: the module that this benchmark itself has just written to its own temporary folder.
LOADERS = """
import torch
def network(): return torch.load({network!r}, weights_only=False)
def images(spec):
    data, one = torch.load({data!r}), torch.ones(1, 1, 1, 1)
    return data["x"], data["y"], one, 0 * one, spec["epsilon"] * one
"""


def main() -> None:
    """Print two rows for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="CKPT")
    parser.add_argument("--ledger", type=Path, required=True, help="folder of the cascade's ledger")
    parser.add_argument("--abcrown", type=Path, required=True, metavar="DIR")
    parser.add_argument("--python", type=Path, required=True, help="of the environment of alpha-beta-CROWN")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds an image")
    parser.add_argument("--first", type=int, metavar="N", help="of the images in question")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    payload = checkpoint.read(options.model)
    config = Config.build(payload["config"], str(options.model))
    network = checkpoint.network_of(payload, str(options.model)).eval()
    data, eps = config.data.load(options.data_dir, "test"), float(config.eps.target)
    head, rows = read_ledger(options.ledger)
    chosen = sorted(index for index, row in rows.items() if row.decided_by in ("bab", None))[: options.first]
    about = {
        "network": config.model.spec(), "method": config.method.spec(), "dataset": config.data.name,
        "eps": config.eps.target.text, "timeout": options.timeout, "weights_sha256": head["weights_sha256"],
        "abcrown": commit_of(options.abcrown), "abcrown_lirpa": commit_of(options.abcrown / "auto_LiRPA"),
        "expressive_losses": commit_of(Path(__file__).parent), **circumstances(),
    }  # fmt: skip
    x, y = data.images[: max(chosen) + 1] / data.scale, data.labels[: max(chosen) + 1]
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(options.abcrown, options.python, Path(folder), network, x, y, eps, options.timeout)
        for index in chosen:
            for tool, found in (
                ("expressive_losses", ours(network, x, y, eps, index, options.timeout)),
                ("alpha-beta-CROWN", theirs(index)),
            ):
                print(json.dumps({"image": index, "tool": tool, **found, **about}), flush=True)


def ours(
    network: BoundedNetwork, x: torch.Tensor, y: torch.Tensor, eps: float, index: int, timeout: float
) -> dict[str, object]:
    """Run the whole cascade on one image."""
    stages = build_stages("cascade", {"bab": {"timeout": timeout}})
    began, cpu = time.monotonic(), time.process_time()
    with computing_in(torch.float32):
        problem = Problem.of(network, x[index : index + 1], y[index : index + 1], eps, [index])
        outcomes = [one for batch in Cascade(stages)(network, problem) for one in batch]
    return {
        "status": outcomes[0].status.value,
        "by": outcomes[0].decided_by,
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


class Theirs:
    """alpha-beta-CROWN on the same network and images, one process an image."""

    def __init__(
        self, root: Path, python: Path, folder: Path, network: BoundedNetwork, x, y, eps: float, timeout: float
    ) -> None:
        self._root, self._python, self._folder, self._timeout = root.resolve(), python.absolute(), folder, timeout
        if network.mean.any() or (network.std != 1).any():
            raise SystemExit("only networks without normalisation")
        torch.save(network.model, folder / "network.pt")
        torch.save({"x": x, "y": y}, folder / "data.pt")
        (folder / "loaders.py").write_text(
            LOADERS.format(network=str(folder / "network.pt"), data=str(folder / "data.pt"))
        )
        (folder / "start.py").write_text(START)
        config = {
            **SETTINGS,
            "model": {"name": 'Customized("loaders.py", "network")', "input_shape": [-1, *network.shape]},
            "data": {"dataset": 'Customized("loaders.py", "images")', "num_outputs": network.classes, "end": len(x)},
            "specification": {"epsilon": eps},
            "bab": {**SETTINGS["bab"], "timeout": timeout},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def __call__(self, index: int) -> dict[str, object]:
        command = [self._python, self._folder / "start.py", "--config", self._folder / "config.yaml"]
        paths = [self._root / "complete_verifier", self._root / "auto_LiRPA"]
        before = cpu_of_children()
        done = subprocess.run(
            [*map(str, command), "--select_instance", str(index)],
            cwd=self._root / "complete_verifier",
            env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"^Result: (\S+).* in ([0-9.]+) seconds", done.stdout, re.MULTILINE)
        if found is None:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        by = re.findall(r"^([a-z-]+(?: \(timed out\))?) \(total 1\)", done.stdout, re.MULTILINE)
        status = {"safe": "verified", "unsafe": "falsified"}.get(found[1].split("-")[0], "unknown")
        return {
            "status": status,
            "by": by[0] if by else found[1],
            "seconds": round(float(found[2]), 2),
            "cpu_seconds": round(cpu_of_children() - before, 2),
        }


def cpu_of_children() -> float:
    """Return the CPU seconds of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in a folder."""
    command: Sequence[str] = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
