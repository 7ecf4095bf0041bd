#!/usr/bin/env bash
# Expressive Losses, table 6: variability over seeds (CIFAR-10, 8/255)
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/table6.yaml "$@"
