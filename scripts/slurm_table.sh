#!/bin/bash
# A table or figure under SLURM, one share of its cells for each job of an array, one GPU each; then render it once.
#
#   sbatch --array=0-15 scripts/slurm_table.sh scripts/crown_ibp/tableD.sh --scale full --data-dir data
#
# The folder of --runs (default runs/experiments) has to be on a file system that all machines see. A job that runs out of
# time goes on where it was when it is submitted again.
#SBATCH --job-name=expressive-losses
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
table=$1
shift
exec "$table" "$@" --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
