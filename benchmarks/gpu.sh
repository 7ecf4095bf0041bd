#!/bin/bash
# Everything that only a GPU can show, in under ten minutes: tests, and the rows of the tables of docs/performance.md.
#
#   bash benchmarks/gpu.sh [folder for the rows]        PYTHON=... names another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu}
python=${PYTHON:-python}
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total --format=csv > "$out/device.txt"
timeout 150 "$python" -m pytest -q -m gpu tests/test_cuda.py | tee "$out/tests.txt"
timeout 150 "$python" benchmarks/training.py steps --device cuda --rounds 10 --batch 256 > "$out/training_steps.jsonl"
timeout 120 "$python" benchmarks/training.py memory --device cuda --only cnn7 > "$out/memory.jsonl"
timeout 120 "$python" benchmarks/training.py growth --device cuda --rounds 10 > "$out/scaling.jsonl"
