#!/usr/bin/env bash
# AdvIBP, table 2: CIFAR-10, AdvIBP and CROWN-IBP
exec "$(dirname "$0")/../reproduce.sh" scripts/adv_ibp/table2.yaml "$@"
