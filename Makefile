# make train: set up and train the main job. make test: set up everything and test it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# System packages, and the part of the tests that is skipped where they cannot be installed.
APT := python3-venv python3-dev g++ pkg-config libopencv-dev libturbojpeg0-dev \
	slurm-wlm slurmdbd munge mariadb-server shellcheck chromium

.PHONY: help train test coverage lint format golden results crash-test audit lock cluster-up cluster-down setup setup-test system clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

# As many as there are GPUs (a power of two, which divides the batch), or two on a CPU.
RANKS = $$($(BIN)/python -c 'import torch; print(1 << (torch.cuda.device_count() or 2).bit_length() - 1)')

train: setup shards/digits/valid ## train the 5-level StackedWAE on the embedded digits, a process for each GPU, or two
	$(BIN)/torchrun --standalone --nproc-per-node $(RANKS) -m dtrain experiment=quickstart
	@echo "Look at runs/quickstart/images/ and runs/quickstart/metrics.jsonl"

# Three tests at a time: most start processes of their own and wait for them. One thread for each process.
test: setup-test lint golden shards/digits/valid ## set up everything, then lint and test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --durations=30 --ignore tests/golden $(PYTEST)

coverage: PYTEST = --cov --cov-report=term
coverage: test ## the same, and how much of the code the tests have run; a third slower

golden: setup-test ## check that the golden curves still come out
	$(BIN)/python -m pytest --quiet tests/golden

results: setup ## make the tables of docs/results.md from the metrics files in docs/results
	$(BIN)/python tools/results.py

crash-test: setup-test ## a signal at every moment, a fault at every file operation of a run; an hour or two
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_signals.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crashes

lint: setup-test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: setup-test ## known vulnerabilities of the installed packages
	$(BIN)/pip-audit --local --skip-editable --progress-spinner off

lock: setup-test ## write the installed, tested versions to constraints.txt
	$(BIN)/pip freeze --exclude-editable > constraints.txt

format: setup-test ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cluster-up: setup-test ## start a real SLURM on this machine, to try the launcher without a cluster
	slurm/devcluster/cluster.sh up

cluster-down: ## stop it
	slurm/devcluster/cluster.sh down

shards/%/valid: | setup
	$(BIN)/python -m data_prep $*

setup: $(VENV)/.installed
setup-test: system $(VENV)/.installed-test

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); ./tools/apt-install python3-venv; $(PYTHON) -m venv $(VENV); }
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

# FFCV is built from source and needs the system packages; DALI needs no GPU to run on the CPU.
$(VENV)/.installed-test: pyproject.toml | system $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev,dali,dinov2,embed,fidelity,mlflow,trackio,umap,wandb]'
	$(BIN)/pip install --quiet --editable '.[ffcv]' || echo "FFCV did not build: its tests will be skipped"
	@touch $@

system:
	@./tools/apt-install $(APT)

clean: ## remove the virtual environment and caches; runs and shards stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage*
