#!/usr/bin/env bash
# The main table: Expressive Losses, table 1.
exec "$(dirname "$0")/expressive_losses/table1.sh" "$@"
