#!/usr/bin/env bash
# Expressive Losses, table 1: methods on all data sets
exec "$(dirname "$0")/../reproduce.sh" scripts/expressive_losses/table1.yaml "$@"
