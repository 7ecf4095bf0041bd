"""One step of bounds with many classes, on the fast path and by auto_LiRPA: CPU time and memory. JSON rows on stdout.

    python benchmarks/many_classes.py >results/many_classes.jsonl

`cnn_small` with 512 hidden units, 3x32x32, forward and backward, each in a process of its own: peaks never fall again.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch
from measuring import circumstances, in_a_process, peak_mib

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.losses.base import verified_cross_entropy
from expressive_losses.registry import MODELS
from expressive_losses.types import Box

SHAPE, EPS, ROUNDS = (3, 32, 32), 0.01, 3
#: Method, classes, batch size.
CASES = (
    ("ibp", 200, 128), ("ibp", 1000, 128),
    *((method, classes, 16) for method in ("crown_ibp", "crown_ibp_fused") for classes in (10, 200, 1000)),
)  # fmt: skip


def measure(method: str, classes: int, batch: int, fast: bool) -> dict[str, float]:
    """Return the median CPU seconds of a step after the first, and the memory that steps add, in MiB."""
    torch.manual_seed(0)
    model = MODELS.build({"name": "cnn_small", "hidden": 512}).build(SHAPE, classes)
    network = BoundedNetwork(model, SHAPE, classes, fast_chain=fast).eval()
    x, labels = torch.rand(batch, *SHAPE), torch.randint(0, classes, (batch,))
    before, seconds = peak_mib(), []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        network.zero_grad()
        verified_cross_entropy(network.margins(Box.around(x, EPS), labels, method)).backward()
        seconds.append(time.process_time() - began)
    return {"cpu_seconds": round(median(seconds[1:]), 3), "added_mib": round(peak_mib() - before)}


def main() -> None:
    """Print a row for each case and path; with a case as argument, measure it alone."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        method, classes, batch, fast = sys.argv[1:]
        print(json.dumps(measure(method, int(classes), int(batch), fast == "fast")))
        return
    for method, classes, batch in CASES:
        for path in ("fast", "auto_LiRPA"):
            found = in_a_process([__file__, method, str(classes), str(batch), path])
            about = {
                "method": method,
                "classes": classes,
                "batch_size": batch,
                "path": path,
                "rounds": ROUNDS,
                "seed": 0,
            }
            print(json.dumps({**about, **found, **circumstances()}), flush=True)


if __name__ == "__main__":
    main()
