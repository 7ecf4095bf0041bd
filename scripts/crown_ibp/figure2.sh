#!/usr/bin/env bash
# CROWN-IBP, figure 2: natural against verified accuracy over kappa (CIFAR-10, 8/255)
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/figure2.yaml "$@"
