#!/usr/bin/env bash
# How AdvIBP's c_max was chosen: digits, 287 training images held out, three seeds. Writes results/adv_ibp_c_max.jsonl.
# About 4 minutes on one core; finished runs are skipped, interrupted ones resumed.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=()
train() {  # train NAME ARGUMENTS...
  for seed in 100 1 2; do
    out=runs/adv-ibp-c-max/$1-seed$seed
    [ -f "$out/summary.json" ] || python train.py --method adv_ibp --out "$out" --resume --quiet --seed $seed --set validation=0.2 "${@:2}"
    runs+=("$out")
  done
}
for c_max in 0 0.1 0.5; do
  train "c_max$c_max" --set method.fosc_max=$c_max
done
train ones --set method.weights=ones
python -m expressive_losses.results rows results/adv_ibp_c_max.jsonl "${runs[@]}"
