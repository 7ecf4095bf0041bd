#!/usr/bin/env bash
# IBP, table 4: IBP, adversarial and standard training
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/table4.yaml "$@"
