#!/usr/bin/env bash
# Minutes on a laptop: the whole chain (train, verify, measure, tune, render) at the scale at which figures mean nothing.
# All tables and figures at that scale: scripts/smoke.sh all --jobs 2 (ten minutes or so on two cores).
set -euo pipefail
cd "$(dirname "$0")/.."
python=python
[ ! -x .venv/bin/python ] || [ -n "${VIRTUAL_ENV:-}" ] || python=.venv/bin/python # what make installed
files=(scripts/expressive_losses/table2.yaml scripts/expressive_losses/figure3.yaml scripts/adv_ibp/figure2.yaml)
[ "${1:-}" != all ] || { shift; files=(scripts/*/table*.yaml scripts/*/figure*.yaml); }
"$python" -m expressive_losses.experiments run "${files[@]}" --scale smoke "$@"
if [[ " $* " == *" --dry-run "* ]]; then
    "$python" -m expressive_losses.experiments polytope --scale smoke --dry-run
    echo "python -m expressive_losses.experiments sweep scripts/sweeps/smoke.yaml"
    exit
fi
"$python" -m expressive_losses.experiments polytope --scale smoke
if "$python" -c 'import optuna' 2>/dev/null; then
    "$python" -m expressive_losses.experiments sweep scripts/sweeps/smoke.yaml
else
    echo "tuning was skipped: Optuna is not installed"
fi
