#!/bin/bash
# One training on several GPUs and machines under SLURM; the batch is shared, the result that of one process.
#
#   sbatch scripts/slurm_train.sh --config configs/cifar10_2_255/mtl_ibp.yaml --out runs/cifar --data-dir data
#
# The folder of --out has to be on a file system that all machines see. SLURM's SIGTERM before the time limit saves the
# state; the job asks to be run again and --resume goes on, also on another number of GPUs.
#SBATCH --job-name=expressive-losses
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# A mistake that a dry run sees, a typo above all, ends the job here: it is not tried again. Whatever else may fail in it
# (a batch for many GPUs does not fit one) says nothing.
mistake=0
python train.py --dry-run --resume "$@" > /dev/null || mistake=$?
[ "$mistake" -ne 2 ] || exit 2

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a machine must not meet
status=0
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not take it over by itself
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else restarted processes may find the addresses of those that are gone
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$port" \
  train.py --resume --quiet "$@" || status=$?

# Not finished: stopped before the time limit, or a machine was lost.
if [ "$status" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
