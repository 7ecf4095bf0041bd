"""One update of the weights: batch, gradient, clipping, optimiser; on a GPU, all of it as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expressive_losses import distributed
from expressive_losses.attacks.base import OfWholeBatch, Randomness
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.capture import CannotCapture, CudaRecorder, Graphs
from expressive_losses.config import Config
from expressive_losses.data.batches import Batches
from expressive_losses.errors import UserError
from expressive_losses.precision import training_precision
from expressive_losses.step import Radii, clean_statistics, forward_batch, numbers_of, structure_of


class Updates:
    """Does updates, each a pure function of (config, step, weights, what the optimiser and the loss remember).

    Args:
        config: the experiment.
        network: whose parameters are changed in place.
        train: training images, on the same device.

    Raises:
        UserError: the config insists on CUDA graphs and there cannot be any.
    """

    def __init__(self, config: Config, network: BoundedNetwork, train: Batches) -> None:
        self.config, self.network, self.train = config, network, train
        self.optimizer = config.optimizer.build(network.parameters())
        self.generator = torch.Generator(train.device)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.memory = config.method.memory(self.parameters)
        self.graphs = self._new_graphs()

    def __call__(self, step: int, indices: Tensor, radii: Radii) -> dict[str, Tensor]:
        """Do one update on the images of these indices; return its scalars, detached and still on the device."""
        seed = mixed_seed(self.config.training.seed, step)
        self.generator.manual_seed(seed)
        rate = self.config.optimizer.lr * self.config.lr_schedule.factor(step, radii.clock)
        with training_precision(self.config.training.precision):
            if self.graphs is not None:
                try:
                    return self._from_graph(self.graphs, indices, radii, rate)
                except CannotCapture as error:
                    self._give_up_graphs(str(error))
                    self.generator.manual_seed(seed)
            return self._update(indices, radii, rate)

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Do updates without graphs inside the context: what an update does can be watched then."""
        graphs, self.graphs = self.graphs, None
        try:
            yield
        finally:
            self.graphs = graphs

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"optimizer": self.optimizer.state_dict(), "method": dict(self.memory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, on the network's device; the optimiser's settings stay those of the config."""
        saved, own = state["optimizer"], self.optimizer.state_dict()
        if len(saved["param_groups"]) != len(own["param_groups"]):
            raise ValueError("other groups of parameters")
        self.optimizer.load_state_dict({**saved, "param_groups": own["param_groups"]})
        self.memory = {name: value.to(self.train.device) for name, value in state["method"].items()}

    def _new_graphs(self) -> Graphs | None:
        """Return what repeats updates, or None where they cannot be captured, or shall not be."""
        training = self.config.training
        obstacles = {
            "the device is no CUDA GPU": self.train.device.type != "cuda",
            "several processes train together": distributed.processes() > 1,
            "the network is no plain chain of layers": not self.network.is_fast_chain,
        }
        found = [text for text, there in obstacles.items() if there]
        if found and training.capture == "always":
            raise UserError(f"training.capture: always, but {found[0]}; set it to auto")
        if found or training.capture == "never":
            return None
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        size = min(training.batch_size, len(self.train))
        return Graphs(CudaRecorder(self.generator), size, self.train.device)

    def _give_up_graphs(self, reason: str) -> None:
        """Go on without graphs, or not at all if the config insists on them."""
        if self.config.training.capture == "always":
            raise UserError(f"training.capture: always, but an update cannot be captured: {reason}; set it to auto")
        warnings.warn(f"updates run one by one, they cannot be captured: {reason}", stacklevel=3)
        self.graphs = None
        self.generator = torch.Generator(self.train.device)  # the old one may still believe in the capture

    def _from_graph(self, graphs: Graphs, indices: Tensor, radii: Radii, rate: float) -> dict[str, Tensor]:
        """Do an update from a graph, if there is one already: all that differs between updates becomes a tensor."""
        method = self.config.method

        def update(indices: Tensor, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return self._update(indices, replace(radii, numbers=numbers), numbers["lr"])

        numbers = {"lr": rate, **numbers_of(method, radii)}
        return graphs.run(structure_of(method, radii, self.config.training), update, indices, numbers)

    def _update(self, indices: Tensor, radii: Radii, rate: float | Tensor) -> dict[str, Tensor]:
        training = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, labels = self.train.batch(indices, self.generator)
        part = distributed.part_of(len(labels))
        self.optimizer.zero_grad(set_to_none=True)
        with distributed.working_on(part):
            if part is not None:
                noise = OfWholeBatch(self.generator, *part[:3])
                terms = self._gradient(part.of(x), part.of(labels), radii, noise=noise)
            elif training.accumulate == 1:
                terms = self._gradient(x, labels, radii)
            else:
                terms = self._in_parts(x, labels, radii)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, training.clip_norm)
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def _gradient(
        self, x: Tensor, labels: Tensor, radii: Radii, share: float = 1.0, statistics=None, noise: Randomness = None
    ) -> dict[str, Tensor]:
        """Add ``share`` times the gradient of these images' loss to the parameters; return the terms."""
        method, training = self.config.method, self.config.training
        batch, terms = forward_batch(
            self.network, method, self.config.attack, x, labels, radii, training, noise or self.generator, statistics
        )
        if radii.warmup or share < 1:
            (share * terms["total"]).backward()
            distributed.add_gradients([parameter.grad for parameter in self.parameters])
            return terms
        return terms | method.backward(batch, terms, self.parameters, self.memory)

    def _in_parts(self, x: Tensor, labels: Tensor, radii: Radii) -> dict[str, Tensor]:
        """Do the same part by part, with the BatchNorm statistics of the whole batch; return the terms' means.

        Exact for losses that are means over samples; Shi et al.'s regulariser becomes the mean of the parts' own.
        """
        statistics = clean_statistics(self.network, x)
        means: dict[str, Tensor] = {}
        parts = self.config.training.accumulate
        for images, own in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            share = len(own) / len(labels)
            terms = self._gradient(images, own, radii, share, statistics)
            means = {name: means.get(name, 0.0) + share * value.detach() for name, value in terms.items()}
        return means


def mixed_seed(*numbers: int) -> int:
    """Return a 63-bit seed made of a seed, a step, ...; streams of neighbouring steps and seeds are unrelated.

    A third number should not be 0: numpy takes (1, 2, 0) for (1, 2).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
