#!/usr/bin/env bash
# IBP, figure 4: the polytope of a 2-D toy problem and its interval bounds during training. Seconds at every scale.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=python
[ ! -x .venv/bin/python ] || [ -n "${VIRTUAL_ENV:-}" ] || python=.venv/bin/python # what make installed
exec "$python" -m expressive_losses.experiments polytope "$@"
