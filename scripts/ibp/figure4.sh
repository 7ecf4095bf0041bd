#!/usr/bin/env bash
# IBP, figure 4: the polytope of a 2-D toy problem and its interval bounds during training. Seconds; --seeds 0 1 2.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python -m expressive_losses.experiments polytope --out runs/experiments/results/ibp/figure4 "$@"
