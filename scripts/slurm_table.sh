#!/bin/bash
# A table or figure under SLURM, one share of its cells for each job of an array, one GPU each. N is the number of shares:
# a part of the array that is submitted again has the shares that it had.
#
#   sbatch --array=0-15 scripts/slurm_table.sh 16 scripts/crown_ibp/tableD.sh --scale full --data-dir data
#   sbatch --array=3,7 scripts/slurm_table.sh 16 scripts/crown_ibp/tableD.sh --scale full --data-dir data   # those again
#
# The folder of --runs (default runs/experiments) has to be on a file system that all machines see. A job that runs out of
# time goes on where it was when it is submitted again.
#SBATCH --job-name=expressive-losses
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ || -z "${2:-}" || -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
  echo "error: expected sbatch --array=0-15 scripts/slurm_table.sh 16 SCRIPT ..., the number of shares first" >&2
  exit 2
fi
shares=$1 table=$2
shift 2
exec "$table" "$@" --shard "$SLURM_ARRAY_TASK_ID/$shares"
