#!/usr/bin/env bash
# CROWN-IBP, table G: seconds of training
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/tableG.yaml "$@"
