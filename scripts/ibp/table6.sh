#!/usr/bin/env bash
# IBP, table 6: networks of three sizes
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/table6.yaml "$@"
