#!/usr/bin/env bash
# The 25 pairs (lambda_rec, lambda_match) of StackedWAE on digits (001) as a plain array, one GPU each, 8 at a time.
# launch/sweep.py -m model=stackedwae lambda=grid does more: it checks all points first, skips finished ones, collects.
#
#   sbatch slurm/mnist_grid.sh
#   sbatch --array=0-24%2 slurm/mnist_grid.sh data=mnist
#
# Arguments are dtrain's overrides. Variables: DTRAIN_MODEL (stackedwae), DTRAIN_PYTHON (.venv/bin/python),
# DTRAIN_MAX_RESTARTS (20). Submit it again to continue runs that were cancelled or gave up.
#SBATCH --job-name=mnist_grid
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --array=0-24%8
#SBATCH --output=%x-%A_%a.log
# Told 120 s before the time limit, or by a preemption, the ranks save and the job goes back into the queue.
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the project}"
PYTHON=${DTRAIN_PYTHON:-.venv/bin/python}

REC=(0.01 0.05 0.1 0.5 1)
MATCH=(1e-4 1e-3 1e-2 1e-1 1)
POINT=${SLURM_ARRAY_TASK_ID:?submit this script as an array}

# A rank that ends badly leaves the others a minute to save. srun does not take over --cpus-per-task by itself.
exec "$PYTHON" -m launch.requeue \
    srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --label \
    "$PYTHON" -u -m dtrain "model=${DTRAIN_MODEL:-stackedwae}" \
    "model.lambda_rec=${REC[POINT / 5]}" "model.lambda_match=${MATCH[POINT % 5]}" "$@"
