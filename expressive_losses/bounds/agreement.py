"""Whether a network, evaluated again or by its fast path, is one and the same function."""

from __future__ import annotations

import torch

from expressive_losses.bounds.network import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.precision import exact_float32


@torch.no_grad()
@exact_float32()  # TensorFloat-32 rounds folded weights otherwise than BatchNorm's own, by as much as is allowed here
def refuse_disagreement(network: BoundedNetwork) -> None:
    """Evaluate the network twice, and its fast path: what answers by chance or otherwise is not worth a bound.

    Args:
        network: in eval mode.

    Raises:
        UserError: two evaluations of the same two images differ, or those of one image beside another, or the fast path
            computes something else.
    """
    x = torch.rand(2, *network.shape, generator=torch.Generator().manual_seed(0)).to(network.mean)
    first, second = network(x), network(x)
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UserError(
            "the network is random also in eval mode: two evaluations of the same image differ; is there a dropout "
            "whose 'training' is not self.training?"
        )
    near = {"rtol": 1e-3, "atol": 1e-3 * float(first.abs().nan_to_num(0.0).max()), "equal_nan": True}
    beside_another = network(torch.stack([x[0], 1 - x[1]]))  # not alone: sums of other shapes are rounded otherwise
    if not torch.allclose(beside_another[0], first[0], **near):
        raise UserError(
            "the network's answer for an image depends on the images beside it: what it is proven of depends on the "
            "batch; does it take a mean over the batch, or BatchNorm's statistics in eval mode?"
        )
    with network.frozen() as logits:
        fast = logits(x)
    if not torch.allclose(fast, first, **near):
        raise UserError(
            "the fast path for chains of layers does not compute what this network computes: it is neither trained "
            "nor verified; this is an error of expressive_losses, please report it with the network's layers"
        )
