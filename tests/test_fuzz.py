"""Random bytes and random damage: whatever is read is understood or refused by a UserError, and never changed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expressive_losses import checkpoint
from expressive_losses.cli.foreign import read_state_dict
from expressive_losses.config import Config, load, parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.verify.ledger import read_ledger

QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
HEAD = {"format": "expressive-losses-ledger-1", "made_with": [], "skipped": {}, "images": 5, "eps": "0.1"}
ROW = {
    "index": 0, "label": 3, "prediction": 3, "status": "verified", "decided_by": "ibp", "margin": 0.5,
    "seconds": 0.1, "witness": None,
}  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def read_or_refuse(path: Path, read) -> None:
    """Read a file: anything but a value or a one-line UserError, and any change of the file, is a failure."""
    before = path.read_bytes()
    try:
        read(path)
    except UserError as error:
        assert str(error).strip()
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.fixture
def place(tmp_path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@QUICK
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_random_configs(place, content):
    path = place / "config.yaml"
    path.write_bytes(content)
    read_or_refuse(path, load)


yaml_like = st.lists(
    st.tuples(
        st.sampled_from([*Config.model_fields, "extends", "name", "lr", "eps.target", "x", "- a", "&a", "*a", "!!int"]),
        st.sampled_from([": ", ":\n  ", ": {", ": [", " "]),
        st.sampled_from(["1", "null", "{}", "8/255", "5e-4", ".nan", "[1", "mtl_ibp", "'", "!!python/name:os.system"]),
    ),
    max_size=5,
).map(lambda parts: "\n".join("".join(part) for part in parts))


@QUICK
@given(yaml_like)
def test_almost_configs(place, text):
    path = place / "config.yaml"
    path.write_text(text, encoding="utf-8")
    read_or_refuse(path, load)


@QUICK
@given(st.text(max_size=40))
def test_random_assignments(text):
    try:
        parsed = parse_assignment(text)
    except UserError as error:
        assert "--set" in str(error)
    else:
        assert isinstance(parsed, dict) and len(parsed) == 1


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A checkpoint as it should be."""
    config = load(None)
    model = config.model.build((1, 8, 8), 10)
    file = io.BytesIO()
    content = {
        "format": 1, "model": config.model.spec(), "shape": [1, 8, 8], "classes": 10, "mean": [0.0], "std": [1.0],
        "weights": model.state_dict(), "config": config.resolved(),
    }  # fmt: skip
    torch.save(content, file)
    return file.getvalue()


def network_of(path: Path) -> None:
    checkpoint.network_of(checkpoint.read(path), str(path))


def test_a_byte_before_a_checkpoint(place, whole):
    """Zip files may have bytes in front; torch takes the whole for an old pickle, and the byte for an instruction."""
    path = place / "model.pt"
    for byte in range(256):
        path.write_bytes(bytes([byte]) + whole)
        for read in (network_of, read_state_dict):
            with pytest.raises(UserError):
                read(path)


@QUICK
@given(st.data())
def test_damaged_checkpoints(place, whole, data):
    """Cut, with bytes changed, or with bytes put in: refused, or as good as it was."""
    content = bytearray(whole)
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "change", "insert", "zero"]))
    if how == "cut":
        del content[at:]
    elif how == "change":
        content[at] ^= data.draw(st.integers(1, 255))
    elif how == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    path = place / "model.pt"
    path.write_bytes(content)
    read_or_refuse(path, network_of)


@pytest.mark.parametrize(("key", "value"), [("classes", 10**12), ("shape", [1, 10**7, 10**7])])
def test_checkpoints_of_networks_larger_than_any_memory(place, whole, key, value):
    path = place / "model.pt"
    torch.save({**torch.load(io.BytesIO(whole), weights_only=True), key: value}, path)
    with pytest.raises(UserError, match="the weights do not fit the model: it has [0-9,]+ numbers, the file [0-9,]+"):
        network_of(path)


@QUICK
@given(
    key=st.sampled_from(["format", "model", "shape", "classes", "mean", "std", "weights", "config", "new"]),
    value=values,
)
def test_checkpoints_with_another_value(place, whole, key, value):
    payload = torch.load(io.BytesIO(whole), weights_only=True)
    path = place / "model.pt"
    torch.save({**payload, key: value}, path)
    read_or_refuse(path, network_of)


@QUICK
@given(st.data())
def test_damaged_ledgers(place, data):
    lines = [json.dumps(HEAD), *(json.dumps({**ROW, "index": index}) for index in range(5))]
    content = bytearray("\n".join(lines).encode() + b"\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path = place / "ledger.jsonl"
    path.write_bytes(content)
    read_or_refuse(path, lambda path: read_ledger(path.parent))


@QUICK
@given(key=st.sampled_from([*ROW, "new"]), value=values)
def test_ledgers_with_another_value(place, key, value):
    rows = [
        json.dumps(HEAD),
        json.dumps(ROW),
        json.dumps({**ROW, "index": 1, key: value}),
        json.dumps({**ROW, "index": 2}),
    ]
    path = place / "ledger.jsonl"
    path.write_text("\n".join(rows) + "\n")
    read_or_refuse(path, lambda path: read_ledger(path.parent))
