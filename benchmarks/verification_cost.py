"""What verification costs: images a second by bound, and time and memory against the nodes of branch-and-bound.

    python benchmarks/verification_cost.py bounds CKPT --data-dir data >> results/verification_cost.jsonl
    python benchmarks/verification_cost.py nodes CKPT --image 7 --data-dir data >> results/verification_cost.jsonl
    python benchmarks/verification_cost.py crown >> results/verification_cost.jsonl
    python benchmarks/verification_cost.py write

``bounds`` runs each bound alone, in the batches that it chooses for a CPU, on the first images that are classified
correctly. ``nodes`` gives one image that branch-and-bound does not decide soon more and more nodes, each time in a
fresh process, for its peak of memory. ``crown`` bounds one image by CROWN with an untrained CNN7 of more and more
classes. Seconds are CPU time. ``write`` puts the tables of the committed rows into docs/performance.md; a test compares
them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances, in_a_process, peak_mib, resident_mib

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork, lirpa
from expressive_losses.config import Config
from expressive_losses.registry import MODELS, VERIFIERS
from expressive_losses.results import read_rows
from expressive_losses.types import Box
from expressive_losses.verify import Cascade, Problem
from expressive_losses.verify.bab import BranchAndBound, _Search
from expressive_losses.verify.evaluation import computing_in, evaluation_copy

ROOT = Path(__file__).parent.parent
ROWS, DOCUMENT = ROOT / "results" / "verification_cost.jsonl", ROOT / "docs" / "performance.md"
#: How many images each bound gets: enough for a few seconds.
IMAGES = {"ibp": 512, "crown-ibp": 128, "crown": 12, "alpha-crown": 8, "bab": 8}
NODES = (256, 1024, 4096)


def main() -> None:
    """Print rows, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bounds", "nodes", "one", "crown", "one-crown", "write"])
    parser.add_argument("model", nargs="?", type=Path, metavar="CKPT")
    parser.add_argument("--image", type=int, default=0, help="for nodes: index of the test image")
    parser.add_argument("--max-nodes", type=int, default=256, help="for one, which nodes calls")
    parser.add_argument("--classes", type=int, default=10, help="for one-crown, which crown calls")
    parser.add_argument("--whole", action="store_true", help="for one-crown: everything at once")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    elif options.what == "one":
        print(json.dumps(one_search(options)))
    elif options.what == "one-crown":
        print(json.dumps(one_crown(options.classes, options.whole)))
    elif options.what == "crown":
        for given in (["10"], ["200"], ["1000"], ["10", "--whole"]):
            row = in_a_process([__file__, "one-crown", "--classes", *given])
            print(json.dumps({**row, **circumstances()}), flush=True)
    elif options.what == "nodes":
        for limit in NODES:
            same = [str(options.model), "--image", str(options.image), "--data-dir", str(options.data_dir)]
            row = in_a_process([__file__, "one", *same, "--max-nodes", str(limit)])
            print(json.dumps({**row, **circumstances()}), flush=True)
    else:
        for name in IMAGES:
            print(json.dumps({**one_bound(options, name), **circumstances()}), flush=True)


def subject(options: argparse.Namespace) -> tuple[Any, Any, Any, float, dict[str, Any]]:
    """Return network, images, labels, radius, and what a row says of them."""
    payload = checkpoint.read(options.model)
    config = Config.build(payload["config"], str(options.model))
    data = config.data.load(options.data_dir, "test")
    network = evaluation_copy(checkpoint.network_of(payload, str(options.model)), "cpu", torch.float32)
    about = {"network": config.model.spec(), "method": config.method.spec(), "dataset": config.data.name}
    return network, data.images / data.scale, data.labels, float(config.eps.target), about


def one_bound(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one bound on its share of the images; the second of two passes over the first batch is measured."""
    network, images, labels, eps, about = subject(options)
    stage, count = VERIFIERS.build(name), IMAGES[name]
    with torch.no_grad():
        right = (network(images[: 2 * count + 20]).argmax(1) == labels[: 2 * count + 20]).nonzero().squeeze(1)[:count]
    with computing_in(torch.float32):
        problem = Problem.of(network, images[right], labels[right], eps, right.tolist())
        warm = Cascade([VERIFIERS.build({"name": name, **({"timeout": 1.0} if name == "bab" else {})})])
        list(warm(network, problem.select(range(stage.batch_size(torch.device("cpu"))))))
        began = time.process_time()
        outcomes = [one for batch in Cascade([stage])(network, problem) for one in batch]
        seconds = time.process_time() - began
    status = Counter(one.status.value for one in outcomes)
    return {
        **about, "eps": eps, "what": "bound", "bound": name, "stage": stage.spec(), "images": len(right),
        "cpu_seconds": round(seconds, 3), "per_second": round(len(right) / seconds, 2), "status": status,
    }  # fmt: skip


def one_search(options: argparse.Namespace) -> dict[str, Any]:
    """Give one image so many nodes; time, memory, and how far the bound came."""
    network, images, labels, eps, about = subject(options)
    at = slice(options.image, options.image + 1)
    how = BranchAndBound(max_nodes=options.max_nodes, timeout=1e6)
    with computing_in(torch.float32):
        problem = Problem.of(network, images[at], labels[at], eps, [options.image])
        search = _Search(BranchAndBound(max_nodes=2, timeout=1e6), network, problem)
        search.run()  # warms everything up: what it holds is not the tree's
        before, began = resident_mib(), time.process_time()
        search = _Search(how, network, problem)
        search.run()
    tree = search._trees[0]
    return {
        **about, "eps": eps, "what": "nodes", "image": options.image, "max_nodes": options.max_nodes,
        "nodes": tree.nodes, "neurons": search._networks.quick.neurons.count, "open": len(tree),
        "worst": round(tree.worst, 4) if len(tree) else None,
        "verified": tree.verified, "falsified": tree.witness is not None,
        "cpu_seconds": round(time.process_time() - began, 2), "added_mib": round(peak_mib() - before),
        "tree_mib": round(sum(tensor.nbytes for part in tree._parts for tensor in part.tensors()) / 2**20, 1),
    }  # fmt: skip


def one_crown(classes: int, whole: bool) -> dict[str, Any]:
    """Bound one random image by CROWN with an untrained CNN7; ``whole``: every layer's neurons at once."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec, shape, eps = {"name": "cnn7"}, (3, 32, 32), 2 / 255
    network = BoundedNetwork(MODELS.build(spec).build(shape, classes), shape, classes).eval()
    if whole:
        lirpa.MOST_COEFFICIENTS = 2**60
    box, labels, before = Box.around(torch.rand(1, *shape), eps), torch.zeros(1, dtype=torch.long), peak_mib()
    began = time.process_time()
    with torch.no_grad():
        relu_inputs = network.bounds(box, labels, "crown").relu_inputs
    seconds = time.process_time() - began
    unstable = sum(int(((inputs.lower < 0) & (inputs.upper > 0)).sum()) for inputs in relu_inputs)
    return {
        "network": spec, "what": "crown", "classes": classes, "in_parts": not whole, "images": 1, "eps": eps, "seed": 0,
        "neurons": sum(inputs.lower.numel() for inputs in relu_inputs), "unstable": unstable,
        "cpu_seconds": round(seconds, 1), "added_mib": round(peak_mib() - before),
    }  # fmt: skip


def bounds_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return images a second by bound and network."""
    lines = ["| network | bound | images | verified | falsified | images a CPU second |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {_named(row)} | {row['bound']} | {row['images']} | {row['status'].get('verified', 0)} "
            f"| {row['status'].get('falsified', 0)} | {row['per_second']:g} |"
        )
    return "\n".join(lines)


def nodes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return time and memory by nodes."""
    head = (
        "network",
        "image",
        "unstable neurons",
        "nodes",
        "open",
        "worst bound",
        "CPU s",
        "MiB of the tree",
        "added MiB",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (_named(row), *(row[key] for key in (
            "image", "neurons", "nodes", "open", "worst", "cpu_seconds", "tree_mib", "added_mib")))  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def crown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return time and memory of CROWN by classes."""
    lines = ["| classes | neurons | unstable | bounded | CPU s | added MiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        how = "in parts" if row["in_parts"] else "at once"
        cells = (row["classes"], row["neurons"], row["unstable"], how, row["cpu_seconds"], row["added_mib"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['network']['name']}, {row['method']['name']} {row['method'].get('alpha', '')}".rstrip()


def with_tables(text: str) -> str:
    """Return the document with the tables of the committed rows between its markers."""
    rows = read_rows(ROWS)
    tables = (("bound", "bounds", bounds_table), ("nodes", "nodes", nodes_table), ("crown", "crown", crown_table))
    for what, name, table in tables:
        made = table([row for row in rows if row["what"] == what])
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        new = f"{begin}\n{made}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
        assert count == 1, name
    return text


if __name__ == "__main__":
    main()
