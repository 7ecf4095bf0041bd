#!/usr/bin/env bash
# The quick MNIST recipes (configs/quick) over seeds: as published, and with the learning rate chosen on held-out training
# images. 3 to 4 minutes a run on one core, 32 runs. With --results results: writes results/quick_mnist*.jsonl.
recipes=scripts/recipes/quick_mnist
exec "$(dirname "$0")/reproduce.sh" "${recipes}_validation.yaml" "$recipes.yaml" "${recipes}_tuned.yaml" --scale full "$@"
