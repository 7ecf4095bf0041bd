#!/usr/bin/env bash
# Expressive Losses, figure 2: accuracies over alpha
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/figure2.yaml "$@"
