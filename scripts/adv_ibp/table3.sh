#!/usr/bin/env bash
# AdvIBP, table 3: best, median and worst of many networks, AdvIBP and CROWN-IBP
exec "$(dirname "$0")/../reproduce.sh" scripts/adv_ibp/table3.yaml "$@"
