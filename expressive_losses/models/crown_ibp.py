"""Models A to T of the CROWN-IBP work: many small networks, for studies of training stability."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from expressive_losses.models.base import Model, Shape
from expressive_losses.models.layers import Conv, convnet
from expressive_losses.registry import MODELS

# Letter: convolutions as (filters, kernel, stride), then the hidden linear layers.
TABLE: dict[str, tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]] = {
    "a": (((4, 4, 2), (8, 4, 2)), (128,)),
    "b": (((8, 4, 2), (16, 4, 2)), (256,)),
    "c": (((4, 3, 1), (8, 3, 1), (8, 4, 4)), (64,)),
    "d": (((8, 3, 1), (16, 3, 1), (16, 4, 4)), (128,)),
    "e": (((4, 5, 1), (8, 5, 1), (8, 5, 4)), (64,)),
    "f": (((8, 5, 1), (16, 5, 1), (16, 5, 4)), (128,)),
    "g": (((4, 3, 1), (4, 4, 2), (8, 3, 1), (8, 4, 2)), (256, 256)),
    "h": (((8, 3, 1), (8, 4, 2), (16, 3, 1), (16, 4, 2)), (256, 256)),
    "i": (((4, 3, 1), (4, 4, 2), (8, 3, 1), (8, 4, 2)), (512, 512)),
    "j": (((8, 3, 1), (8, 4, 2), (16, 3, 1), (16, 4, 2)), (512, 512)),
    "k": (((16, 3, 1), (16, 4, 2), (32, 3, 1), (32, 4, 2)), (256, 256)),
    "l": (((16, 3, 1), (16, 4, 2), (32, 3, 1), (32, 4, 2)), (512, 512)),
    "m": (((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), (512, 512)),
    "n": (((64, 3, 1), (64, 4, 2), (128, 3, 1), (128, 4, 2)), (512, 512)),
    "o": (((64, 5, 1), (128, 5, 1), (128, 4, 4)), (512,)),
    "p": (((32, 5, 1), (64, 5, 1), (64, 4, 4)), (512,)),
    "q": (((16, 5, 1), (32, 5, 1), (32, 5, 4)), (512,)),
    "r": (((32, 3, 1), (64, 3, 1), (64, 3, 4)), (512,)),
    "s": (((32, 4, 2), (64, 4, 2)), (128,)),
    "t": (((64, 4, 2), (128, 4, 2)), (256,)),
}


class CrownIbpNet(Model):
    """Base of models A to T: one row of the table, ReLU, no BatchNorm.

    The table gives no padding: 1 here, and 0 where the stride is 4, as in the authors' code.
    NOTE: the table prints a 5x5 or 3x3 kernel of stride 4 in E, F, Q and R; the authors' code has 4x4 there.
    The print is kept.

    Source: Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", table
        B; the padding from model_defs.py of the authors' repository.
    """

    letter: ClassVar[str]

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Return the network; see :meth:`Model.build`."""
        convs, hidden = TABLE[self.letter]
        padded = [Conv(*conv, padding=0 if conv[2] == 4 else 1) for conv in convs]
        return convnet(self.name, shape, classes, padded, hidden)


def _register(letter: str) -> None:
    convs, hidden = TABLE[letter]
    layers = [f"conv {filters} {kernel}x{kernel}+{stride}" for filters, kernel, stride in convs]
    text = f"Model {letter.upper()}: {', '.join(layers + [f'FC {units}' for units in hidden])}; no BatchNorm."
    namespace = {"__doc__": text, "__module__": __name__, "letter": letter}
    name = f"Model{letter.upper()}"
    # under its name in this module, where pickle looks for it (experiments hand configs to other processes)
    globals()[name] = MODELS.register(f"model_{letter}")(type(name, (CrownIbpNet,), namespace))


for _letter in TABLE:
    _register(_letter)
