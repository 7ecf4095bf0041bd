#!/usr/bin/env bash
# Expressive Losses, figure 3: losses over alpha, of the networks of figure 2
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/figure3.yaml "$@"
