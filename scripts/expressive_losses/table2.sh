#!/usr/bin/env bash
# Expressive Losses, table 2: types of training attack
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/table2.yaml "$@"
