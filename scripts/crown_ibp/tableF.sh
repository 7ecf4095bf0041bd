#!/usr/bin/env bash
# CROWN-IBP, table F: overfitting at a small radius, with and without L1 (MNIST)
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/tableF.yaml "$@"
