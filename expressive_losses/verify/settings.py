"""How to verify: all that is chosen beside the network, the data, the radius and the stages, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from expressive_losses.errors import UserError
from expressive_losses.verify.shard import make_shard

DType = Literal["float32", "float64"]


@dataclass(frozen=True)
class Settings:
    """How a run goes. Those that its rows depend on are written to the head of the ledger.

    Attributes:
        dataset, split: names of the data, for the ledger.
        first: only the first so many images.
        shard: only the images i, i + n, i + 2n, ... of those, as (i, n);
            :func:`expressive_losses.verify.merge.merge` joins the ledgers of all n. Rows keep the indices of the whole.
        batch_size: images at once; ``None`` chooses by stage and device.
        seed: of the attacks.
        dtype: "float64" makes rounding errors negligible, at a price.
        device: to compute on.
        budget: seconds for this call; images not decided by then get no row, count as wrong, and are left to
            ``resume``.
        resume: go on with the ledger that is there.
        progress: show a bar.

    Raises:
        UserError: for a value out of range.
    """

    dataset: str = ""
    split: str = ""
    first: int | None = None
    shard: tuple[int, int] | None = None
    batch_size: int | None = None
    seed: int = 0
    dtype: DType = "float32"
    device: torch.device | str = "cpu"
    budget: float | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("first", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name.replace('_', ' ')}: expected at least {least}, got {value}")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget >= 0):
            raise UserError(f"budget: expected seconds >= 0, got {self.budget}")
        if self.dtype not in get_args(DType):
            raise UserError(f"dtype: expected {' or '.join(get_args(DType))}, got {self.dtype}")
        if self.shard is not None:
            object.__setattr__(self, "shard", make_shard(*self.shard))
