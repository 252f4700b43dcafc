#!/usr/bin/env bash
# StackedWAE with 10 levels on CelebA (001): one run on one GPU, which a batch of 64 does not fill.
#
#   sbatch slurm/celeba10.sh
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/celeba10.sh trainer.batch_size=512
#
# A task for each GPU. More GPUs share out the batch: give them a larger one, and fewer trainer.max_steps.
# Arguments are dtrain's overrides. Variables: DTRAIN_EXPERIMENT (celeba10), DTRAIN_PYTHON (.venv/bin/python),
# DTRAIN_MAX_RESTARTS (20). Submit it again to continue a run that was cancelled or gave up.
#SBATCH --job-name=celeba10
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Told 120 s before the time limit, or by a preemption, the ranks save and the job goes back into the queue.
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the project}"
PYTHON=${DTRAIN_PYTHON:-.venv/bin/python}

# A rank that ends badly leaves the others a minute to save. srun does not take over --cpus-per-task by itself.
exec "$PYTHON" -m launch.requeue \
    srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --label \
    "$PYTHON" -u -m dtrain "experiment=${DTRAIN_EXPERIMENT:-celeba10}" "$@"
