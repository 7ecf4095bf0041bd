#!/usr/bin/env bash
# IBP, table 3: tightness of IBP on networks trained with it
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/table3.yaml "$@"
