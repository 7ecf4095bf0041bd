"""The tables of the documents are those of the committed rows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_cost_of_verification_are_those_of_the_rows(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    benchmark = load("verification_cost")
    text = benchmark.DOCUMENT.read_text(encoding="utf-8")
    assert benchmark.with_tables(text) == text, "run: python benchmarks/verification_cost.py write"


def test_tables_of_branch_and_bound_are_those_of_the_rows():
    benchmark = load("branch_and_bound")
    text = benchmark.DOCUMENT.read_text(encoding="utf-8")
    assert benchmark.with_tables(text) == text, "run: python benchmarks/branch_and_bound.py write"
