"""Grids of runs on SLURM or on this machine: submit, follow, retry, cancel, collect."""
