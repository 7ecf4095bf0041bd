#!/usr/bin/env bash
# IBP, table 5: loss and elision of the last layer (MNIST, 0.4)
exec "$(dirname "$0")/../reproduce.sh" scripts/ibp/table5.yaml "$@"
