#!/usr/bin/env bash
# AdvIBP, table 4: MNIST, AdvIBP, AdvCROWN-IBP and CROWN-IBP
exec "$(dirname "$0")/../reproduce.sh" scripts/adv_ibp/table4.yaml "$@"
