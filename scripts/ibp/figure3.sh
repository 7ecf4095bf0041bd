#!/usr/bin/env bash
# IBP, figure 3: accuracies against the radius of the test (MNIST)
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/figure3.yaml "$@"
