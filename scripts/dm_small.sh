#!/usr/bin/env bash
# DM-small on MNIST with six methods on short schedules, one model tested at several radii as in the papers.
# Writes results/dm_small.jsonl. About two hours on one core; finished runs are skipped, interrupted ones resumed.
#   scripts/dm_small.sh [methods, default all six]
set -euo pipefail
cd "$(dirname "$0")/.."
methods=${1:-"ibp crown_ibp adv_ibp adv_crown_ibp mtl_ibp sabr"}
runs=()
run() {  # run RECIPE EPS...: train, then clean, IBP and (for what IBP leaves) PGD at each radius
  local out=runs/quick/dm_small/$1
  [ -f "$out/summary.json" ] || python train.py --config "configs/quick/dm_small/$1.yaml" --out "$out" --resume --quiet
  for eps in "${@:2}"; do
    [ -f "$out/verify-eps$eps/summary.json" ] ||
      python verify.py --model "$out" --bound clean,ibp,pgd --eps "$eps" --out "$out/verify-eps$eps" --resume --quiet
  done
  runs+=("$out")
}
for method in $methods; do
  run "mnist_0.4/$method" 0.2 0.3 0.4
  run "mnist_0.1/$method" 0.1
done
python -m expressive_losses.results rows results/dm_small.jsonl "${runs[@]}"
