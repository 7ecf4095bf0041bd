"""auto_LiRPA's BoundedModule behind one function; hides what differs between releases."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from expressive_losses.bounds import compat
from expressive_losses.bounds.loss_fusion import SummedExponentials
from expressive_losses.bounds.preparation import convolution_mode, with_all_parameters, with_padding_in_numbers
from expressive_losses.bounds.refusals import (
    has_arithmetic_with_constants,
    refuse_outside,
    refuse_wrong_relaxations,
    sampled_points,
)
from expressive_losses.bounds.statistics import BatchStatistics, batch_norms
from expressive_losses.errors import UnsupportedNetwork, UserError, is_out_of_memory
from expressive_losses.types import Bounds, Box

_METHODS = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown": "CROWN", "alpha_crown": "CROWN-Optimized"}
#: Coefficients of one layer at once in CROWN's passes from the margins and from hidden neurons, in numbers: 128 MiB of
#: float32.
MOST_COEFFICIENTS = 2**25


class Graph:
    """The bounded graph of one module: parameters are shared with it, BatchNorm statistics are given at every call.

    BatchNorm nodes always run in eval mode on statistics that are handed to them. That makes a bound a pure function of
    (parameters, statistics, box), the same in every release of auto_LiRPA, also while training.

    Args:
        model: the plain module, on normalised input.
        shape: of one input.
        like: a tensor whose device and dtype the graph takes.

    Raises:
        UnsupportedNetwork: naming the layer, when auto_LiRPA does not support one.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], like: Tensor) -> None:
        self._lirpa = compat.load()
        self._model = model
        self._bounded = self._trace(model, torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
        nodes = list(self._bounded._modules.values())
        self._relus = [node for node in nodes if type(node).__name__ == "BoundRelu"]
        self._can_optimise = any("Optimizable" in kind.__name__ for node in nodes for kind in type(node).__mro__)
        self._pools = [node.name for node in nodes if type(node).__name__ == "BoundMaxPool"]
        self._buffers = {node.ori_name: node for node in nodes if type(node).__name__ == "BoundBuffers"}
        self._root = next(node for node in nodes if type(node).__name__ == "BoundInput")
        self._parameters = [node for node in nodes if type(node).__name__ == "BoundParams"]
        self._sampled: set[str] = set()  # methods whose first bounds were compared with points
        refuse_wrong_relaxations(nodes)
        self._set_modes(nodes)
        self._keywords()
        self._refuse_other_function()

    def weights_after_sums(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers that read the ReLU of a sum of two branches."""
        found = {}
        for node in self._bounded._modules.values():
            if type(node).__name__ not in ("BoundConv", "BoundLinear") or type(node.inputs[0]).__name__ != "BoundRelu":
                continue
            read, weight = node.inputs[0].inputs[0], getattr(node.inputs[1], "param", None)
            branches = type(read).__name__ == "BoundAdd" and all(part.from_input for part in read.inputs)
            if branches and isinstance(weight, nn.Parameter):
                found[id(weight)] = weight
        return list(found.values())

    def _keywords(self) -> None:
        """Find out what this release calls the fixed hidden bounds."""
        parameters = inspect.signature(self._bounded.compute_bounds).parameters
        self._fixed_keyword = (
            "intermediate_layer_bounds" if "intermediate_layer_bounds" in parameters else "interm_bounds"
        )

    def bounds(
        self,
        box: Box,
        matrices: Tensor,
        method: str,
        statistics: BatchStatistics | None = None,
        iterations: int = 20,
        lr: float = 0.5,
        decay: float = 0.98,
        fix_intermediate: bool = True,
    ) -> Bounds:
        """Bound C f from below over a box of normalised inputs.

        Args:
            box: (B, *shape).
            matrices: C, (B, M, K).
            method: "ibp", "ibp_logits", "crown_ibp", "crown" or "alpha_crown".
            statistics: by BatchNorm layer; ``None``: the module's running ones.
            iterations, lr, decay: alpha-CROWN: steps of Adam on the slopes, their step size and its decay per step.
            fix_intermediate: alpha-CROWN: keep CROWN's bounds on the hidden layers (fast) or optimise those too (slow).
        """
        with self._passing(method, statistics):
            if method == "alpha_crown":
                found = self._alpha_crown(box, matrices, iterations, lr, decay, fix_intermediate)
            elif method == "ibp_logits":
                found = self._ibp_logits(box, matrices)
            elif method == "crown":
                found = self._crown(box, matrices)
            else:
                found = self._compute(box, matrices, method)
            if method not in self._sampled and not self._model.training and not torch.equal(box.lower, box.upper):
                self._refuse_above_points(found, matrices, method)
                self._sampled.add(method)
            return found

    def ibp_and_crown_ibp(
        self, box: Box, matrices: Tensor, statistics: BatchStatistics | None = None
    ) -> tuple[Bounds, Bounds]:
        """Return both bounds for the price of CROWN-IBP, whose first pass is IBP up to the margins.

        Args:
            box, matrices, statistics: see :meth:`bounds`.
        """
        with self._passing("crown_ibp", statistics):
            crown_ibp = self._compute(box, matrices, "crown_ibp")
            return Bounds(self._bounded.ibp_lower, box, crown_ibp.relu_inputs), crown_ibp

    def ibp_and_fused(
        self, box: Box, matrices: Tensor, labels: Tensor, statistics: BatchStatistics | None = None
    ) -> tuple[Bounds, Bounds]:
        """Return IBP bounds, and CROWN-IBP's with loss fusion, (B, 1): see :mod:`expressive_losses.bounds.loss_fusion`.

        Args:
            box, matrices, statistics: see :meth:`bounds`.
            labels: (B,) int64.
        """
        with self._passing("crown_ibp", statistics):
            lower, upper = self._bounded.compute_bounds(x=(self._input(box),), C=matrices, method="IBP")
            ibp = Bounds(lower, box, self._relu_inputs(), upper)
            exponentials = SummedExponentials(ibp)
            least = self._compute(box, exponentials.row(labels), "crown_ibp").margins
            return ibp, replace(ibp, margins=exponentials.margin(least), upper=None)

    @contextmanager
    def _passing(self, method: str, statistics: BatchStatistics | None) -> Iterator[None]:
        """Set the graph for a pass, and clear it afterwards: nothing of the pass stays alive on the nodes.

        Raises:
            UnsupportedNetwork: whatever auto_LiRPA raises, errors of all kinds, for a layer that the method cannot
                handle.
        """
        self._set_statistics(statistics)
        self._keep_requires_grad()
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = f"{difficult(self._model)}: {type(error).__name__}: {error}"
            raise UnsupportedNetwork(f"auto_LiRPA cannot bound this network by {method}{reason}") from error
        finally:
            self._bounded._clear_and_set_new(None)

    def _ibp_logits(self, box: Box, matrices: Tensor) -> Bounds:
        """Bound the logits, then their differences: each margin at the worst of its own."""
        lower, upper = self._bounded.compute_bounds(x=(self._input(box),), method="IBP")
        positive, negative = matrices.clamp(min=0), matrices.clamp(max=0)
        margins = positive @ lower.unsqueeze(2) + negative @ upper.unsqueeze(2)
        return Bounds(margins.squeeze(2), box, self._relu_inputs())

    def _alpha_crown(self, box, matrices, iterations, lr, decay, fix_intermediate) -> Bounds:
        if self._pools and compat.lirpa_version() < Version("0.4"):
            # Its slopes of a maximum are laid out for batches of exactly K - 1 images; other batches fail.
            raise UnsupportedNetwork(f"alpha-CROWN: auto_LiRPA 0.3 cannot optimise max pooling (node {self._pools[0]})")
        self._bounded.set_bound_opts(
            {"optimize_bound_args": {"iteration": iterations, "lr_alpha": lr, "lr_decay": decay}}
        )
        with torch.no_grad():
            start = self._crown(box, matrices)
        if not self._can_optimise:  # the network is affine, and CROWN exact
            return start
        fixed = {self._fixed_keyword: self._named(start.relu_inputs)} if fix_intermediate else {}
        with torch.enable_grad(), self._frozen_parameters():
            found = self._compute(box, matrices, "alpha_crown", **fixed)
        margins = torch.maximum(found.margins.detach(), start.margins)
        return Bounds(margins, box, start.relu_inputs if fix_intermediate else found.relu_inputs)

    @contextmanager
    def _frozen_parameters(self):
        """Parameters need no gradient: else the backward pass inside alpha-CROWN costs more and adds to their .grad."""
        flags = [parameter.requires_grad for parameter in self._model.parameters()]
        nodes = [node for node in self._bounded._modules.values() if type(node).__name__ == "BoundParams"]
        for node in nodes:
            node.eval()
        try:
            yield
        finally:
            for node in nodes:
                node.train()
            for parameter, flag in zip(self._model.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    def _crown(self, box: Box, matrices: Tensor) -> Bounds:
        """Bound by CROWN, neurons of hidden layers and rows of the matrices in parts where there are many.

        The bounds on the hidden layers come out of the first part and serve the others: a part costs one backward pass.
        """
        references = self._interval_references(self._input(box))
        largest = max((lower[0].numel() for lower, _ in references.values()), default=1)
        size = max(1, MOST_COEFFICIENTS // (len(matrices) * largest))
        first, *rest = matrices.split(size, dim=1)
        with self._at_most(size):
            found = self._compute(box, first, "crown", reference_bounds=references)
        fixed = {self._fixed_keyword: self._named(found.relu_inputs)} if rest else {}
        margins = [found.margins, *(self._compute(box, part, "crown", **fixed).margins for part in rest)]
        return Bounds(torch.cat(margins, 1), box, found.relu_inputs)

    @contextmanager
    def _at_most(self, neurons: int):
        """Bound at most so many neurons of a hidden layer at once; sums of residual branches are bounded whole."""
        # the second is of 0.7.x, which would enlarge the parts of its own accord
        self._bounded.bound_opts.update({"crown_batch_size": neurons, "batched_crown_max_vram_ratio": 0})
        try:
            yield
        finally:
            self._bounded.bound_opts["crown_batch_size"] = math.inf

    def _compute(self, box: Box, matrices: Tensor, method: str, **intermediate: dict[str, list[Tensor]]) -> Bounds:
        lower, _ = self._bounded.compute_bounds(
            x=(self._input(box),), C=matrices, method=_METHODS[method], bound_upper=False, **intermediate
        )
        return Bounds(lower, box, self._relu_inputs())

    def _interval_references(self, x) -> dict[str, list[Tensor]]:
        """Return IBP bounds on the ReLUs' inputs, for CROWN's to be intersected with.

        auto_LiRPA runs CROWN for the neurons that IBP leaves unstable in some image of the batch, and then takes those
        bounds for all images. They may be looser than IBP: a neuron that is stable when its image is bounded alone
        would be unstable in company. Intersected, a bound does not depend on the batch.
        """
        self._bounded.compute_bounds(x=(x,), method="IBP")
        return self._named(self._relu_inputs())

    def _input(self, box: Box):
        """Return auto_LiRPA's perturbed input. A dispatch mode (a counter of operations) must not see it made."""
        norm = self._lirpa.PerturbationLpNorm(norm=float("inf"), eps=None, x_L=box.lower, x_U=box.upper)
        with _disable_current_modes():
            return self._lirpa.BoundedTensor(box.lower, norm)

    def _relu_inputs(self) -> tuple[Box, ...]:
        inputs = [relu.inputs[0] for relu in self._relus]
        return tuple(Box(node.lower, node.upper) for node in inputs if getattr(node, "lower", None) is not None)

    def _named(self, boxes: Sequence[Box]) -> dict[str, list[Tensor]]:
        return {relu.inputs[0].name: [box.lower, box.upper] for relu, box in zip(self._relus, boxes, strict=True)}

    def _set_statistics(self, statistics: BatchStatistics | None) -> None:
        for name, layer in batch_norms(self._model).items():
            if f"{name}.running_mean" not in self._buffers:
                continue  # the forward pass does not get there
            mean, variance = (statistics or {}).get(name, (layer.running_mean, layer.running_var))
            self._buffers[f"{name}.running_mean"].buffer = mean
            self._buffers[f"{name}.running_var"].buffer = variance

    def _set_modes(self, nodes) -> None:
        """Put BatchNorm in eval mode, everything else in train mode."""
        self._bounded.train()
        for node in nodes:
            if type(node).__name__ == "BoundBatchNormalization":
                node.eval()

    def _keep_requires_grad(self) -> None:
        """auto_LiRPA sets requires_grad of a parameter to its node's training mode at each pass: make that a no-op."""
        for node in self._parameters:
            node.training = node.param.requires_grad

    def _trace(self, model: nn.Module, dummy: Tensor):
        """Return the BoundedModule of a copy of the model, then let it share the model's own parameters.

        Tracing writes to the parameters of what it traces (in place, which would invalidate an autograd graph
        that exists) and switches their requires_grad: the user's module is left alone.
        """
        bare = [name for name, layer in batch_norms(model).items() if layer.running_mean is None]
        if bare:
            raise UnsupportedNetwork(f"layer '{bare[0]}': BatchNorm without running statistics has no eval mode")
        traced = with_all_parameters(with_padding_in_numbers(copy.deepcopy(model).eval()))
        x = torch.randn(dummy.shape, generator=torch.Generator().manual_seed(0)).to(dummy)
        with torch.no_grad():
            expected = traced(x)
        mode = convolution_mode(traced, dummy.shape)
        bounded = self._converted(model, copy.deepcopy(traced), dummy, mode)
        if mode == "patches" and has_arithmetic_with_constants(bounded):
            bounded = self._converted(model, traced, dummy, "matrix")
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for node in bounded._modules.values():
            if type(node).__name__ == "BoundParams" and node.ori_name in parameters:
                node.param = parameters[node.ori_name]
        self._check = (x, expected)
        return bounded

    def _converted(self, model: nn.Module, traced: nn.Module, dummy: Tensor, mode: str):
        """Return the BoundedModule of a copy of the model, which is written to, with convolutions in this mode."""
        options = {"conv_mode": mode, "sparse_features_alpha": False}
        said = io.StringIO()
        try:
            with _logged_to(said), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", torch.jit.TracerWarning)
                # the device as text: 0.7.x compares it with "cpu"
                bounded = self._lirpa.BoundedModule(traced, dummy, bound_opts=options, device=str(dummy.device))
        except Exception as error:  # of all kinds: an IndexError for a convolution over one dimension
            if is_out_of_memory(error):
                raise
            reason = f"{difficult(model)}: {_reason(error, said)}"
            raise UnsupportedNetwork(f"auto_LiRPA cannot bound this network{reason}") from error
        if any("Python boolean" in str(warning.message) for warning in warned):
            raise UnsupportedNetwork(
                "the network's forward pass branches on a tensor's values: its bounds would be those of one branch"
            )
        return bounded

    @torch.no_grad()
    def _refuse_above_points(self, found: Bounds, matrices: Tensor, method: str) -> None:
        """Compare bounds, hidden ones too, with what the graph has at points of the first boxes; one forward pass.

        Raises:
            NoBounds: a value is not within its bounds.
        """
        few = slice(0, 8)
        points = sampled_points(found.input.lower[few], found.input.upper[few])
        flat = points.flatten(0, 1)
        logits = self._bounded(flat).unflatten(0, points.shape[:2])
        margins = (matrices[few] @ logits.unsqueeze(3)).squeeze(3)
        refuse_outside(method, margins, found.margins[few], torch.full_like(found.margins[few], math.inf), logits)
        nodes = [relu.inputs[0] for relu in self._relus]
        whole = len(nodes) == len(found.relu_inputs)  # else some have no bounds, and it is not known which
        for node, one in zip(nodes, found.relu_inputs, strict=True) if whole else ():
            # a constant has one value, whatever the image; where channels are images to a layer, there are more
            if node.from_input and len(node.forward_value) == len(flat):
                value = node.forward_value.unflatten(0, points.shape[:2])
                refuse_outside(method, value, one.lower[few], one.upper[few], value)

    def _refuse_other_function(self) -> None:
        """Compare bounds at single points with the network's values: some layers are converted wrongly without a word.

        Known in release 0.3: average pooling with padding, weights that are computed in the forward pass.

        Raises:
            UnsupportedNetwork: when the bounds at a point are not the value there.
        """
        x, expected = self._check
        if not torch.isfinite(expected).all():
            return  # NaN weights: no bound will hold
        matrices = _combinations(expected.shape[1]).to(x).expand(len(x), -1, -1)
        allowed = 1e-3 * (1 + expected.abs().max())
        box = Box(x, x.clone())  # where both ends are one object, release 0.3 takes the interval for a constant
        for method in ("ibp", "crown_ibp"):
            try:
                with torch.no_grad():
                    found = self.bounds(box, matrices, method).margins
            except UnsupportedNetwork:  # so it will be when used
                continue
            if not (found - (matrices @ expected.unsqueeze(2)).squeeze(2)).abs().max() <= allowed:
                raise UnsupportedNetwork(
                    f"auto_LiRPA's {method} bounds of this network are wrong at single points: it converts a layer "
                    "wrongly (known: average pooling with padding, computed weights), or rounding errors reach a "
                    "thousandth of the largest logit"
                )


@contextmanager
def _logged_to(stream: io.StringIO):
    """Send what auto_LiRPA logs to ``stream``: it names there what it cannot convert, over many lines."""
    log, handler = logging.getLogger("auto_LiRPA"), logging.StreamHandler(stream)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def _reason(error: Exception, said: io.StringIO) -> str:
    """Return what the error says, or the operations that auto_LiRPA logged before it."""
    printed = re.findall(r"^Name: (\S+?), Attr: (?:.*'operator': '(\w+)')?", said.getvalue(), re.MULTILINE)
    operations = [operator or name for name, operator in printed]
    return f"unsupported operation {', '.join(operations)}" if operations else f"{type(error).__name__}: {error}"


def difficult(model: nn.Module) -> str:
    """Return which layers auto_LiRPA 0.3 is known to fail on without naming them, in brackets; "" if there are none."""
    known = [
        f"'{name}' ({type(layer).__name__})"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Conv3d) or getattr(layer, "padding_mode", "zeros") != "zeros"
    ]
    return f" (it is known to fail on layer {', '.join(known)})" if known else ""


def _combinations(classes: int, most: int = 16) -> Tensor:
    """Return the logits one by one, (K, K), or (most, K) random combinations of norm about 1 of more than that.

    A difference in any logit shows in those too, and takes less memory to look for.
    """
    if classes <= most:
        return torch.eye(classes)
    return torch.randn(most, classes, generator=torch.Generator().manual_seed(0)) / classes**0.5
