#!/usr/bin/env bash
# Expressive Losses, table 3: verifiers, on the networks of table 1
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/table3.yaml "$@"
