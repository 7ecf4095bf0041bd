#!/usr/bin/env bash
# CROWN-IBP, table C: three networks, IBP and CROWN-IBP, three settings of kappa
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/tableC.yaml "$@"
