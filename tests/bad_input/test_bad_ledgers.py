"""verify.py: ledgers that are there already, and the tools that read them."""

from __future__ import annotations

import pytest

from expressive_losses.cli import verify_main

CASES = [
    ("--model run --bound ibp --first 10 --out ledgers/good", "--resume"),
    *(
        (f"--model run --bound ibp --first 10 --resume --out ledgers/{name}", message)
        for name, message in {
            "corrupt": "line 5",
            "binary": "line 5",
            "doubled": "second row",
            "headless": "head of a ledger",
            "garbage_head": "head of a ledger",
            "newer": "head of a ledger",
            "bad_status": "line 5",
            "bad_index": "line 5",
            "missing_key": "line 5",
            "other_model": "another question",
            "other_eps": "another question",
            "eps_in_words": "says eps 0.2 and means 0.1",
        }.items()
    ),
    ("--model run --bound ibp --first 10 --resume --out ledgers/good --eps 0.2", "another question"),
    ("--model run --bound ibp --first 10 --resume --out ledgers/good --dtype float64", "another question"),
]  # fmt: skip
TOOLS = [
    ("export --model run --out fresh --first -2", "--first"),
    ("export --model run --out fresh --first 0", "--first"),
    ("export --model run --out fresh --timeout -1", "timeout: expected seconds > 0"),
    ("export --model run --out file", "cannot write: Not a directory"),
    ("merge ledgers/good --out file", "cannot write"),
    ("report ledgers/good --out file", "cannot write: Not a directory"),
    ("export --model run --first -2 --out fresh", "--first"),
    ("export --model run --eps 8 --out fresh", "did you mean 8/255"),
    ("merge", "FOLDER"),
    ("merge empty --out fresh", "ledger.jsonl"),
    ("merge ledgers/good ledgers/copy --out fresh", "overlap"),
    ("merge ledgers/corrupt --out fresh", "line 5"),
    ("check ledgers/good", "--model is missing"),
    ("check empty --model run", "ledger.jsonl"),
    ("check ledgers/other_model --model run", "another question"),
    ("check ledgers/eps_in_words --model run", "says eps 0.2 and means 0.1"),
    ("report ledgers/eps_in_words", "says eps 0.2 and means 0.1"),
    ("check ledgers/good --model run --attack nothing", "nothing"),
    ("report empty", "ledger.jsonl"),
    ("report", "FOLDER"),
    ("export --model run", "--out"),
    ("export --model nowhere --out fresh", "nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line or "nothing" for line, _ in CASES])
def test_ledgers(refuses_run, line, message):
    refuses_run(verify_main, line, message)


@pytest.mark.parametrize(("line", "message"), TOOLS, ids=[line for line, _ in TOOLS])
def test_tools(refuses, line, message):
    refuses(verify_main, line, message)
