#!/usr/bin/env bash
# CROWN-IBP, table 2: DM-large, IBP and CROWN-IBP, three settings of kappa
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/table2.yaml "$@"
