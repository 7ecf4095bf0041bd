"""Does the soundness campaign notice an unsound line? Break the package on purpose, one line at a time, and see.

Each mutation replaces one piece of source text at import, in a process of its own; nothing on the disk is changed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

PACKAGE = Path(__file__).parent.parent / "expressive_losses"


class Mutation(NamedTuple):
    """One broken line.

    Attributes:
        name: what is broken, in words.
        module: file of the package.
        old, new: the source text, which occurs once, and what replaces it.
        kind: of the networks that show it, see :func:`campaigns.networks.random_subject`; "" for all kinds in turn.
    """

    name: str
    module: str
    old: str
    new: str
    kind: str = ""


MUTATIONS = (
    Mutation(
        "sign: the radius goes through W, not |W|",
        "bounds/chain.py",
        "return _scaled(abs_linear(radius, self.weight), scale, None)",
        "return _scaled(F.linear(radius, self.weight), scale, None)",
    ),
    Mutation(
        "sign: the width of the margins is added",
        "bounds/interval.py",
        "return middle - width, middle + width",
        "return middle + width, middle + width",
    ),
    Mutation(
        "loss fusion: chords of intervals whose lower ends are the upper ones",
        "bounds/loss_fusion.py",
        "lower, width = interval.margins,",
        "lower, width = interval.upper,",
    ),
    Mutation(
        "loss fusion: tangents in place of chords",
        "bounds/loss_fusion.py",
        "self._slopes = highest * -torch.expm1(-width) / width",
        "self._slopes = highest",
    ),
    Mutation(
        "elision: W_y - W_j without absolute values",
        "bounds/interval.py",
        "(rows.abs() @ radius.unsqueeze(2))",
        "(rows @ radius.unsqueeze(2))",
    ),
    Mutation(
        "sign: the radius goes through a convolution W, not |W|",
        "bounds/chain.py",
        "return self.layer._conv_forward(radius, self.weight.abs(), None)",
        "return self.layer._conv_forward(radius, self.weight, None)",
    ),
    Mutation(
        "sign: BatchNorm's scale of a radius may be negative",
        "bounds/chain.py",
        "scale = self.scale.abs() if isinstance(self.scale, Tensor) else self.scale",
        "scale = self.scale",
    ),
    Mutation(
        "clip: a ReLU's lower bound is reflected at 0, not clipped",
        "bounds/kernels.py",
        "(lower.relu(), upper.relu()) if hidden else (lower.relu_(), upper.relu_())",
        "lower.abs(), upper.relu()",
    ),
    Mutation(
        "clip: a ReLU's upper bound is its centre",
        "bounds/kernels.py",
        "(lower.relu(), upper.relu()) if hidden else (lower.relu_(), upper.relu_())",
        "lower.relu(), center.relu()",
    ),
    Mutation(
        "BatchNorm: the scale of a layer without its variance",
        "bounds/chain.py",
        "scale = torch.rsqrt(variance + norm.eps)",
        "scale = torch.ones_like(variance)",
    ),
    Mutation(
        "BatchNorm: running statistics in place of the batch's",
        "bounds/chain.py",
        "(statistics or {}).get(name, (norm.running_mean, norm.running_var))",
        "(norm.running_mean, norm.running_var)",
    ),
    Mutation(
        "BatchNorm: auto_LiRPA's graph gets the running statistics in place of the batch's",
        "bounds/lirpa.py",
        "(statistics or {}).get(name, (layer.running_mean, layer.running_var))",
        "(layer.running_mean, layer.running_var)",
    ),
    Mutation(
        "specification: f_j - f_y in place of f_y - f_j",
        "types.py",
        "return eye[labels].unsqueeze(1) - eye[others]",
        "return eye[others] - eye[labels].unsqueeze(1)",
    ),
    Mutation(
        "normalisation: the box is bounded without it",
        "bounds/network.py",
        "normalised = Box(self.normalize(box.lower), self.normalize(box.upper))\n        if method ==",
        "normalised = box\n        if method ==",
    ),
    Mutation(
        "box: the lower corner is the middle",
        "bounds/network.py",
        "normalised = Box(self.normalize(box.lower), self.normalize(box.upper))\n        if method ==",
        "normalised = Box(self.normalize(box.center), self.normalize(box.upper))\n        if method ==",
    ),
    Mutation(
        "CROWN: oblong and grouped convolutions in patches mode",
        "bounds/preparation.py",
        'return "patches" if square and not oblong and not special else "matrix"',
        'return "patches"',
    ),
    Mutation(
        "CROWN: constants before padded convolutions in patches mode",
        "bounds/lirpa.py",
        'if mode == "patches" and has_arithmetic_with_constants(bounded):',
        "if False:",
        "wired images",
    ),
    Mutation(
        "CROWN: auto_LiRPA 0.3's own interval pass, which enters a ReLU's bounds as those of what it reads",
        "bounds/compat.py",
        "lirpa.BoundedModule.check_IBP_intermediate = _check_ibp_intermediate",
        "pass",
        "wired vectors",
    ),
    Mutation(
        "slope: CROWN-IBP's upper line has no intercept",
        "bounds/crown_ibp.py",
        "return (slope > 0.5).to(slope.dtype), slope, torch.maximum(-lower * slope, upper - upper * slope)",
        "return (slope > 0.5).to(slope.dtype), slope, 0 * slope",
    ),
    Mutation(
        "slope: CROWN-IBP's lower line is steeper than the ReLU",
        "bounds/crown_ibp.py",
        "return (slope > 0.5).to(slope.dtype), slope, torch.maximum(-lower * slope, upper - upper * slope)",
        "return 1.5 * (slope > 0.5).to(slope.dtype), slope, torch.maximum(-lower * slope, upper - upper * slope)",
    ),
    Mutation(
        "slope: branch-and-bound's upper line of an unstable ReLU is too flat",
        "bounds/beta_crown.py",
        "up = torch.where(free, upper / width, active.to(lower))",
        "up = torch.where(free, 0.5 * upper / width, active.to(lower))",
    ),
    Mutation(
        "slope: branch-and-bound's upper line has no intercept",
        "bounds/beta_crown.py",
        "shift = torch.where(free, -lower * up, 0.0)",
        "shift = torch.zeros_like(up)",
    ),
    Mutation(
        "chain: a layer that stands in two places is seen once",
        "bounds/chain.py",
        "layers = model._modules",
        "layers = dict(model.named_children())",
    ),
    Mutation(
        "chain: BatchNorm over the rows of images is taken for one over their columns",
        "bounds/chain.py",
        "return flat or not isinstance(stage.affine, nn.Linear)",
        "return True",
    ),
    Mutation(
        "reduction: a neuron that may be negative counts as active",
        "bounds/reduction.py",
        "self._active[at] = (lower >= 0)",
        "self._active[at] = (upper > 0)",
    ),
    Mutation(
        "MIP: half of a ReLU's values are cut off",
        "verify/mip_model.py",
        "model.at_least_zero(d.scaled(high) + -y_open)",
        "model.at_least_zero(d.scaled(high / 2) + -y_open)",
    ),
    Mutation(
        "MIP: a maximum forgets members that may be the largest",
        "verify/mip_model.py",
        "upper[pairs[1]] >= floors[pairs[0]]",
        "lower[pairs[1]] >= floors[pairs[0]]",
    ),
    Mutation(
        "decision: one class is excluded in place of all",
        "verify/base.py",
        "worst = margins.amin(1)",
        "worst = margins.amax(1)",
    ),
    Mutation(
        "split: the multiplier of a split may be negative",
        "bounds/beta_crown.py",
        ".clamp_min_(0) if split else dual.beta",
        " if split else dual.beta",
    ),
    Mutation(
        "split: a halved box loses a part",
        "verify/input_splitting.py",
        "return Box(torch.cat([box.lower, above]), torch.cat([below, box.upper]))",
        "return Box(torch.cat([box.lower, above]), torch.cat([below, box.center]))",
    ),
    Mutation(
        "interval: absolute values of a convolution's weights forgotten",
        "bounds/layers.py",
        "        return self._convolve(x, self._absolute)",
        "        return self._convolve(x, self.weight)",
    ),
    Mutation(
        "interval: absolute values of a matrix forgotten",
        "bounds/layers.py",
        "return F.linear(x, self._absolute)",
        "return F.linear(x, self.weight)",
    ),
)


class _Finder(importlib.abc.MetaPathFinder):
    """Loads one module of the package from changed source."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation
        self._name = "expressive_losses." + mutation.module.removesuffix(".py").replace("/", ".")

    def find_spec(self, fullname, path, target=None):
        """Return the spec of the mutated module, and of no other."""
        if fullname != self._name:
            return None
        file = PACKAGE / self._mutation.module
        return importlib.machinery.ModuleSpec(fullname, _Loader(fullname, str(file), self._mutation), origin=str(file))


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads the source with the mutation in it, past any cached bytecode."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self._mutation = mutation

    def get_code(self, fullname):
        """Compile the mutated source."""
        return self.source_to_code(mutated(self._mutation).encode(), self.path)


def mutated(mutation: Mutation) -> str:
    """Return the mutated source.

    Raises:
        ValueError: when the line has changed since: then the mutation must follow it.
    """
    source = (PACKAGE / mutation.module).read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        raise ValueError(f"'{mutation.name}': the text occurs {source.count(mutation.old)} times in {mutation.module}")
    return source.replace(mutation.old, mutation.new)


def violations(mutation: Mutation, networks: int = 40) -> int:
    """Return how many violations the campaign finds with this mutation; stops at the first network with one.

    A campaign that ends in an error has noticed the mutation too: without it, there is none. It counts as one.
    """
    mutated(mutation)  # raises here when the line has changed since
    code = (
        "import math, warnings; warnings.simplefilter('ignore')\n"
        "from campaigns.mutations import Mutation, install\n"
        f"install(Mutation(*{tuple(mutation)!r}))\n"
        "from campaigns.soundness import Campaign\n"
        f"campaign = Campaign(seed=40, kind={mutation.kind!r})\n"
        f"print('violations', campaign.run(math.inf, {networks}, samples=40, until_violation=True).violations)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("violations ")]
    return int(found[0]) if found else 1


def install(mutation: Mutation) -> None:
    """Mutate the package in this process; before it is imported."""
    sys.meta_path.insert(0, _Finder(mutation))


def main(out: Path | None, jobs: int, only: str = ":") -> int:
    """Try mutations; print which were noticed, append a row to ``out``, return 1 if one was not.

    Args:
        jobs: so many at once.
        only: BEGIN:END, positions in the list.
    """
    started, found = time.monotonic(), {}
    begin, end = (int(word) if word else None for word in only.split(":"))
    chosen = MUTATIONS[begin:end]
    with ThreadPoolExecutor(jobs) as pool:  # each waits for a process of its own
        for mutation, count in zip(chosen, pool.map(violations, chosen), strict=True):
            found[mutation.name] = count
            print(f"{'noticed' if count else 'MISSED':<9}{mutation.name}", flush=True)
    missed = [name for name, count in found.items() if not count]
    print(f"{len(found) - len(missed)} of {len(found)} mutations noticed")
    if out:
        _write(out, found, time.monotonic() - started, only)
    return int(bool(missed))


def _write(out: Path, found: dict[str, int], seconds: float, only: str) -> None:
    from expressive_losses.run import environment

    about = environment(torch.device("cpu"))
    row = {
        "campaign": "mutations",
        "command": f"python -m campaigns.soundness --mutations --only {only}",
        "noticed": sum(map(bool, found.values())),
        "of": len(found),
        "mutations": {name: bool(count) for name, count in found.items()},
        "seconds": round(seconds, 1),
        **{key: about[key] for key in ("time", "git", "device", "torch", "auto_LiRPA", "python")},
    }
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
