#!/bin/bash
# Everything that only a GPU can show, in one call of about nine minutes at most: the tests, updates with and without CUDA graphs
# for every method, the goals of docs/performance.md, memory, and a network trained and verified there. Rows go to a folder;
# what fails or runs late leaves what it had, and the rest goes on.
#
#   bash benchmarks/gpu.sh [folder for the rows]        PYTHON=... names another interpreter
#
# Needs the package's requirements installed (README). MNIST (EXPRESSIVE_LOSSES_DATA) is used for the training of 70 epochs
# if it is there, else images of noise: then its time means something and its accuracy nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${1:-results/gpu}
python=${PYTHON:-python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device that torch can use: nothing was measured" >&2
  exit 2
fi
mkdir -p "$out"
scratch=$(mktemp -d) || exit
trap 'rm -rf "$scratch"' EXIT
run=$scratch/run
failed=0
part() { # seconds, file, command: run the command for so long at most
  echo "$2" >&2
  timeout "$1" "${@:3}" > "$out/$2" || { echo "$2: code $? (124: out of time); $(wc -l < "$out/$2") lines" >&2; failed=1; }
}
part 10 device.csv nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
part 110 tests.txt env CUBLAS_WORKSPACE_CONFIG=:4096:8 "$python" -m pytest -q -m gpu tests/test_{cuda,data,determinism}.py
part 190 goals.jsonl "$python" benchmarks/gpu.py goals --limit 160
part 110 steps.jsonl "$python" benchmarks/gpu.py steps
part 30 memory.jsonl "$python" benchmarks/training.py memory --device cuda --only cnn7
part 40 train.txt "$python" train.py --device cuda --out "$run"
part 50 verify.txt "$python" verify.py --model "$run" --device cuda --bound cascade --budget 25
exit $failed
