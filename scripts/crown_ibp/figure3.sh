#!/usr/bin/env bash
# CROWN-IBP, figure 3: verified accuracy over the length of the ramp
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/figure3.yaml "$@"
