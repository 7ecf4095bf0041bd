#!/usr/bin/env bash
# Tables and figures: trains and verifies what is missing, then renders ours beside the published figures.
#   scripts/expressive_losses/table1.sh --scale smoke|cpu|full [--seeds 100 1 2] [--jobs 2] [--shard 0/4] [--dry-run]
# smoke (default): minutes on two cores; cpu: hours, small networks; full: the paper's setting, on GPUs. Finished cells are
# skipped, interrupted ones go on. Rows, Markdown, CSV, LaTeX and pictures: runs/experiments/results, or --results DIR;
# with --missing only the cells are run that have no row there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[ ! -x .venv/bin/python ] || [ -n "${VIRTUAL_ENV:-}" ] || python=.venv/bin/python # what make installed
exec "$python" -m expressive_losses.experiments run "$@"
