"""ONNX and VNN-LIB: the same function, the same box, the same question."""

from __future__ import annotations

import csv
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.bounds.extraction import extract
from expressive_losses.errors import UserError
from expressive_losses.types import Box
from expressive_losses.verify.export import export, export_onnx, logits_of_onnx, vnnlib
from expressive_losses.verify.onnx_import import module_of_onnx


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.pool, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = self.pool(F.relu(x + self.second(x)))
        return self.last(F.avg_pool2d(x, 1).view(x.size(0), -1))


def network() -> BoundedNetwork:
    torch.manual_seed(0)
    model = Residual()
    model(torch.rand(64, 2, 4, 4))
    return BoundedNetwork(model, (2, 4, 4), 3, mean=[0.2, 0.5], std=[0.3, 0.6])


def data(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 2, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(count) % 3


def read(text: str) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """Read a property with a parser of its own: lower and upper bounds, and (j, label) of each disjunct."""
    lower = {int(at): float(v) for at, v in re.findall(r"\(assert \(>= X_(\d+) ([\d.]+)\)\)", text)}
    upper = {int(at): float(v) for at, v in re.findall(r"\(assert \(<= X_(\d+) ([\d.]+)\)\)", text)}
    wrong = {(int(j), int(y)) for j, y in re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", text)}
    return *(np.array([ends[at] for at in range(len(ends))]) for ends in (lower, upper)), wrong


def test_onnxruntime_computes_the_same_logits(tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install expressive_losses[onnx]")
    net, (images, _) = network(), data()
    path = export_onnx(net, tmp_path / "network.onnx")
    assert net.training  # exported from a copy
    with torch.no_grad():
        expected = net.eval()(images / 255).numpy()
    np.testing.assert_allclose(logits_of_onnx(path, images), expected, atol=1e-5)


def test_only_operators_that_tools_know(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    model = onnx.load(export_onnx(network(), tmp_path / "network.onnx"))
    onnx.checker.check_model(model)
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {
        "Sub", "Div", "Conv", "Relu", "Add", "MaxPool", "AveragePool", "Reshape", "Flatten", "Gemm", "Constant",
    }  # fmt: skip
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 2, 4, 4]


def test_the_property_is_the_box_and_the_question():
    images, labels = data()
    eps = 0.1
    lower, upper, wrong = read(vnnlib(images[1], int(labels[1]), eps, 3))
    x = images[1].double().flatten().numpy() / 255
    np.testing.assert_array_equal(lower, np.clip(x - eps, 0, 1))  # all digits
    np.testing.assert_array_equal(upper, np.clip(x + eps, 0, 1))
    assert wrong == {(0, 1), (2, 1)}


def test_small_numbers_have_no_exponent():
    assert not re.search(r"\de-", vnnlib(torch.full((1, 1, 2), 1e-9), 0, 1e-12, 2))


def test_text_is_balanced_and_declares_what_it_uses():
    text = vnnlib(data()[0][0], 2, 0.01, 3, comment="two\nlines")
    assert text.count("(") == text.count(")") and text.startswith("; two lines\n")
    assert set(re.findall(r"[XY]_\d+", text)) == set(re.findall(r"declare-const ([XY]_\d+) Real", text))


def test_a_folder_for_vnn_comp(tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    images, labels = data()
    path = export(network(), images, labels, 0.1, tmp_path, indices=[3, 1], timeout=30)
    rows = list(csv.reader(path.open()))
    assert rows == [["network.onnx", f"vnnlib/image_00000{at}.vnnlib", "30"] for at in (3, 1)]
    assert all((tmp_path / part).is_file() for row in rows for part in row[:2])
    assert read((tmp_path / rows[0][1]).read_text())[2] == {(1, 0), (2, 0)}


def test_messages(tmp_path, monkeypatch):
    images, labels = data()
    with pytest.raises(UserError, match="indices from 0 to 4, got 9"):
        export(network(), images, labels, 0.1, tmp_path, indices=[9])
    with pytest.raises(UserError, match="the network takes images"):
        export(network(), images[:, :1], labels, 0.1, tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx is not installed"):
        export(network(), images, labels, 0.1, tmp_path)


def exported(net: BoundedNetwork, tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    return module_of_onnx(export_onnx(net, tmp_path / "network.onnx"))


def plain(*layers: nn.Module, shape=(2, 4, 4)) -> BoundedNetwork:
    torch.manual_seed(0)
    return BoundedNetwork(nn.Sequential(*layers), shape, 3, mean=[0.2] * shape[0], std=[0.3] * shape[0])


def tail(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 3)]


@pytest.mark.parametrize(
    "net",
    [
        network(),
        plain(nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)),
        plain(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.AvgPool2d(2), nn.Flatten()),
        plain(nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *tail(16)),
        plain(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
)  # fmt: skip
def test_what_was_exported_comes_back(net, tmp_path):
    """The same logits for batches, and bounds of both engines that hold."""
    module, shape, classes = exported(net, tmp_path)
    assert (shape, classes) == ((2, 4, 4), 3)
    x = data()[0] / 255
    with torch.no_grad():
        torch.testing.assert_close(module(x), net.eval()(x), atol=1e-5, rtol=1e-5)
    back, labels = BoundedNetwork(module, shape, classes).eval(), net(x).argmax(1)
    graph = extract(back.model, shape, back.mean)
    torch.testing.assert_close(graph(x), net(x).detach(), atol=1e-5, rtol=1e-5)
    margins = back.margins(Box.around(x, 0.01), labels, "ibp")
    torch.testing.assert_close(margins, net.margins(Box.around(x, 0.01), labels, "ibp"), atol=1e-3, rtol=1e-3)


def test_import_names_what_it_cannot_read(tmp_path):
    with pytest.raises(UserError, match="Sigmoid.*supported: Add, AveragePool"):
        exported(plain(nn.Flatten(), nn.Linear(32, 5), nn.Sigmoid(), nn.Linear(5, 3)), tmp_path)
    with pytest.raises(UserError, match="No such file"):
        module_of_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(UserError, match="not an ONNX file"):
        module_of_onnx(tmp_path / "text.onnx")


def one_node(path, operator, constants, shape, **attributes):
    """Write an ONNX file of one operator on X, read what comes of it."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    make = onnx.helper
    weights = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    node = make.make_node(operator, ["X", *constants], ["Y"], **attributes)
    ends = [
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in (("X", shape), ("Y", None))
    ]
    onnx.save(make.make_model(make.make_graph([node], "g", ends[:1], ends[1:], weights)), str(path))
    return module_of_onnx(path)[0]


def test_the_bias_of_a_gemm_may_be_a_row_and_is_one_for_all_images(tmp_path):
    weight, x = np.eye(2, 3), torch.tensor([[1.0, 2.0, 3.0]])
    for bias in ([1.0, -1.0], [[1.0, -1.0]]):
        module = one_node(tmp_path / "a.onnx", "Gemm", {"W": weight, "B": bias}, (1, 3), transB=1)
        assert module(x).tolist() == [[2.0, 1.0]]
    with pytest.raises(UserError, match="Gemm .* is not supported with these operands"):
        one_node(tmp_path / "b.onnx", "Gemm", {"W": weight, "B": np.ones((2, 2))}, (2, 3), transB=1)


def test_batch_norm_in_training_mode_is_refused(tmp_path):
    constants = dict.fromkeys(("weight", "bias", "mean", "var"), np.ones(2))
    with pytest.raises(UserError, match="BatchNormalization .* is not supported with these operands"):
        one_node(tmp_path / "a.onnx", "BatchNormalization", constants, (2, 2), training_mode=1)


def test_float64_weights_of_an_onnx_file_are_not_rounded(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install expressive_losses[onnx]")
    make, kind = onnx.helper, onnx.TensorProto.DOUBLE
    for value, fits in ((0.5, True), (0.1, False)):
        weight = onnx.numpy_helper.from_array(np.full((2, 3), value), "W")
        node = make.make_node("Gemm", ["X", "W"], ["Y"], transB=1)
        ends = [make.make_tensor_value_info(*end) for end in (("X", kind, (1, 3)), ("Y", kind, (1, 2)))]
        path = tmp_path / "double.onnx"
        onnx.save(make.make_model(make.make_graph([node], "g", ends[:1], ends[1:], [weight])), str(path))
        if fits:
            module_of_onnx(path)
            continue
        with pytest.raises(UserError, match="ONNX tensor 'W' is float64 and would be rounded"):
            module_of_onnx(path)
