#!/usr/bin/env bash
# CROWN-IBP, figure 1: norm of the second convolution and verified accuracy during training (MNIST)
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/figure1.yaml "$@"
