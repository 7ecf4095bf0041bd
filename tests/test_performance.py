"""The tables of docs/performance.md and of DM-small in docs/methods.md are those of the committed rows."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_are_made_from_the_rows(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import training

    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert training.with_tables(text) == text, "run: python benchmarks/training.py table --write"
    for name in training.FILES:
        assert f"<!-- {name}:begin -->\n|" in text


def test_dm_small_beside_the_published_errors(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import dm_small

    text = dm_small.DOCUMENT.read_text(encoding="utf-8")
    assert dm_small.with_table(text) == text, "run: python benchmarks/dm_small.py --write"
    assert "| crown_ibp | 0.4 | 20 | 0.004 | shi | 5.01 |" in text


def test_many_classes_beside_auto_lirpa():
    rows = [json.loads(line) for line in (ROOT / "results" / "many_classes.jsonl").read_text().splitlines()]
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        names = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown_ibp_fused": "CROWN-IBP, fused"}
        name = names[ours["method"]]
        seconds = f"{ours['cpu_seconds']:.2f} ({theirs['cpu_seconds']:.2f})"
        memory = f"{ours['added_mib']} ({theirs['added_mib']})"
        assert f"| {name} | {ours['classes']} | {ours['batch_size']} | {seconds} | {memory} |" in text
