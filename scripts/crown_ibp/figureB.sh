#!/usr/bin/env bash
# CROWN-IBP, figure B: how much tighter CROWN-IBP is than IBP during training
exec "$(dirname "$0")/../reproduce.sh" scripts/crown_ibp/figureB.yaml "$@"
