"""Matrix products by oneDNN equal torch's own, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from expressive_losses.bounds import products
from expressive_losses.cli.dry_run import _FlopCounter

pytestmark = pytest.mark.skipif(not products._AVAILABLE, reason="torch multiplies by MKL alone on this processor")


def matrices(*shapes):
    """Leaves of small integers, whose products and sums float32 holds exactly: whatever the order, the same numbers."""
    torch.manual_seed(0)
    return [torch.randint(-8, 9, shape).float().requires_grad_() for shape in shapes]


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN was asked."""
    found = []
    asked = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *arguments: found.append(1) or asked(*arguments))
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, calls):
    """x W' + b, forward and back: three products."""
    x, weight, b = matrices((64, 512), (128, 512), (128,))
    inputs = (x, weight, b) if bias else (x, weight)
    ours, theirs = products.linear(*inputs), F.linear(*inputs)
    assert torch.equal(ours, theirs)
    direction = torch.randint(-8, 9, ours.shape).float()
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (ours, theirs)), strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 3


@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
def test_product_of_matrices_that_lie_turned_in_memory(turned, calls):
    """The products of a backward pass are of transposes."""
    with torch.no_grad():
        a, b = matrices((512, 64) if "a" in turned else (64, 512), (128, 512) if "b" in turned else (512, 128))
        a, b = a.t() if "a" in turned else a, b.t() if "b" in turned else b
        assert torch.equal(products.product(a, b), a @ b)
    assert len(calls) == 1


def test_product_of_stacks(calls):
    """One product each."""
    with torch.no_grad():
        a, b = matrices((3, 64, 512), (3, 512, 128))
        assert torch.equal(products.product(a, b), a @ b)
        assert torch.equal(products.product(a, b.mT.contiguous().mT), a @ b)
    assert len(calls) == 6


def test_what_is_left_to_torch(calls, monkeypatch):
    """Nothing to multiply, single rows, and everything once oneDNN is switched off."""
    with torch.no_grad():
        a, b = matrices((1, 2048), (2048, 1024))
        assert torch.equal(products.product(a, b), a @ b)
        assert products.product(torch.zeros(0, 3, 4), torch.zeros(0, 4, 2)).shape == (0, 3, 2)
        a, b = matrices((64, 512), (512, 128))
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(products.product(a, b), a @ b)
    assert not calls


def test_parts_of_matrices_are_copied_first(monkeypatch):
    """oneDNN would go through them a number at a time."""
    given = []
    asked = products.ONEDNN_LINEAR
    monkeypatch.setattr(products, "ONEDNN_LINEAR", lambda *arguments: given.extend(arguments[:2]) or asked(*arguments))
    with torch.no_grad():
        a, b = matrices((64, 600), (600, 200))
        a, b = a[:, :512], b[:512, :128]
        assert torch.equal(products.product(a, b), a @ b)
    assert all(matrix.is_contiguous() or matrix.t().is_contiguous() for matrix in given)
    assert len(given) == 2


def test_only_the_gradients_that_are_asked_for(calls):
    """Attacks hold the weights constant: one product forward, one back."""
    x, weight = matrices((64, 512), (128, 512))
    products.linear(x, weight.detach()).sum().backward()
    assert x.grad is not None
    assert len(calls) == 2


@pytest.mark.parametrize("x, weight", [((2, 3), (4, 3)), ((64, 2, 512), (128, 512))], ids=["small", "rows of images"])
def test_what_torch_does_itself(x, weight, calls):
    """Where it is not worth it, and what it cannot do."""
    x, weight = matrices(x, weight)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    wide = torch.ones(512, 512, dtype=torch.float64)
    assert torch.equal(products.linear(wide, wide), wide @ wide.t())
    assert not calls


def test_operations_are_counted(calls):
    """2 n k m, as of torch's own product."""
    x, weight = matrices((64, 512), (128, 512))
    with _FlopCounter() as counter:
        products.linear(x, weight)
    assert calls
    assert counter.total == 2 * 64 * 512 * 128
