#!/usr/bin/env bash
# CROWN-IBP, table 1: verifiers on networks trained with IBP
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/table1.yaml "$@"
