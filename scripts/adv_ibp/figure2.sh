#!/usr/bin/env bash
# AdvIBP, figure 2: moments against constant weights 1 and 1
exec "$(dirname "$0")/../reproduce.sh" scripts/adv_ibp/figure2.yaml "$@"
