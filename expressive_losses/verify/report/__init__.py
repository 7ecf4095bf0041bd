"""A report of a verification that a person would look at: one HTML file, and the same as Markdown."""

from expressive_losses.verify.report.write import write_curve, write_report

__all__ = ["write_curve", "write_report"]
