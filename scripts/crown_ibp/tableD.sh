#!/usr/bin/env bash
# CROWN-IBP, table D: best, median and worst of many networks
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/tableD.yaml "$@"
