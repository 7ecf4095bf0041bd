#!/usr/bin/env bash
# The quick MNIST recipes (configs/quick) over three seeds: trains, then writes results/quick_mnist.jsonl.
# Finished runs are skipped, interrupted ones resumed. About 4 minutes a run on one core.
#   scripts/quick_mnist.sh [seeds, default "100 1 2"]
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-"100 1 2"}
runs=()
for seed in $seeds; do
  for config in mnist_0.3/mtl_ibp mnist_0.3/cc_ibp mnist_0.3/sabr mnist_0.3/ibp mnist_0.1/mtl_ibp; do
    out=runs/quick/$config-seed$seed
    [ -f "$out/summary.json" ] || python train.py --config "configs/quick/$config.yaml" --seed "$seed" --out "$out" --resume
    runs+=("$out")
  done
done
python -m expressive_losses.results rows results/quick_mnist.jsonl "${runs[@]}"
