"""Verification: a cascade of verifiers over a data set, with a resumable ledger. One family a file."""

from expressive_losses.verify.base import DEFAULT_TOLERANCE, Problem, Status, Verdict, Verifier
from expressive_losses.verify.cascade import CASCADE, Cascade, Outcome, build_stages
from expressive_losses.verify.ledger import Ledger, Row, read_ledger
from expressive_losses.verify.run import verify
from expressive_losses.verify.settings import Settings
from expressive_losses.verify.summary import summarize, table_of, write_summary

__all__ = [
    "CASCADE",
    "DEFAULT_TOLERANCE",
    "Cascade",
    "Ledger",
    "Outcome",
    "Problem",
    "Row",
    "Settings",
    "Status",
    "Verdict",
    "Verifier",
    "build_stages",
    "read_ledger",
    "summarize",
    "table_of",
    "verify",
    "write_summary",
]
