#!/usr/bin/env bash
# Expressive Losses, table 7: step size of the single-step attack
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/table7.yaml "$@"
