#!/usr/bin/env bash
# CROWN-IBP, table E: means and standard deviations of 10 networks (MNIST, CROWN-IBP)
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/tableE.yaml "$@"
