"""The settings of a run: checked where they are made, and what the head of the ledger says of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Radius
from expressive_losses.errors import UserError
from expressive_losses.verify import Settings, build_stages
from expressive_losses.verify.head import head_of


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("first", -1, "first: expected at least 1, got -1"),
        ("batch_size", 0, "batch size: expected at least 1, got 0"),
        ("seed", -3, "seed: expected at least 0, got -3"),
        ("budget", -1.0, "budget: expected seconds >= 0, got -1"),
        ("budget", float("nan"), "budget: expected seconds >= 0, got nan"),
        ("dtype", "float16", "dtype: expected float32 or float64, got float16"),
        ("shard", (4, 4), "shard 4/4: .* the last one is 3/4"),
    ],
)
def test_values_out_of_range_are_refused(field, value, words):
    with pytest.raises(UserError, match=words):
        Settings(**{field: value})


def test_the_head_has_what_rows_depend_on_and_nothing_else():
    """How fast, where and for how long a run goes is not part of the question."""
    network = BoundedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3)
    images, labels = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.long)

    def head(eps="2/255", **fields):
        return head_of(network, images, labels, Radius.parse(eps), build_stages("ibp"), Settings(**fields))

    assert head()["eps"] == "2/255"
    assert head(device="cuda", budget=3.0, resume=True, progress=False) == head()
    for change in ({"seed": 1}, {"dtype": "float64"}, {"first": 6}, {"shard": (0, 2)}, {"dataset": "mnist"}):
        assert head(**change) != head()
