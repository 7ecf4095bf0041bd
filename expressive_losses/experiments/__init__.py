"""The papers' tables and figures: a grid of cells (train, verify, measure), run, collected as rows, rendered."""
