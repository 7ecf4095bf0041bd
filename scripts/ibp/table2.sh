#!/usr/bin/env bash
# IBP, table 2: downscaled ImageNet, 1/255
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/table2.yaml "$@"
