#!/usr/bin/env bash
# The quick MNIST recipes (configs/quick) over seeds: as published, and with the learning rate chosen on a validation split.
# Writes results/quick_mnist*.jsonl. Finished runs are skipped, interrupted ones resumed. 3 to 4 minutes a run on one core.
#   scripts/quick_mnist.sh [seeds, default "100 1 2"]
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-"100 1 2"}
recipes="mnist_0.3/mtl_ibp mnist_0.3/cc_ibp mnist_0.3/sabr mnist_0.3/ibp mnist_0.1/mtl_ibp"
run() {  # run OUT ARGUMENTS...
  [ -f "$1/summary.json" ] || python train.py --out "$1" --resume "${@:2}"
}
chosen=()
for lr in 5e-4 2e-3; do
  out=runs/quick/validation/lr$lr
  run "$out" --config configs/quick/mnist_0.3/mtl_ibp.yaml --seed 5 --set validation=10000 --set optimizer.lr=$lr
  chosen+=("$out")
done
published=() tuned=()
for recipe in $recipes; do
  for seed in $seeds; do
    out=runs/quick/$recipe-seed$seed
    run "$out" --config "configs/quick/$recipe.yaml" --seed "$seed"
    published+=("$out")
    out=runs/quick/tuned/$recipe-seed$seed
    run "$out" --config "configs/quick/tuned/$recipe.yaml" --seed "$seed"
    tuned+=("$out")
  done
done
python -m expressive_losses.results rows results/quick_mnist_validation.jsonl "${chosen[@]}"
python -m expressive_losses.results rows results/quick_mnist.jsonl "${published[@]}"
python -m expressive_losses.results rows results/quick_mnist_tuned.jsonl "${tuned[@]}"
