#!/usr/bin/env bash
# What AdvIBP's beta1 changes: digits, 287 training images held out, three seeds. About 5 minutes on one core.
# With --results results: writes results/adv_ibp_beta1.jsonl.
exec "$(dirname "$0")/reproduce.sh" scripts/recipes/adv_ibp_beta1.yaml --scale full "$@"
