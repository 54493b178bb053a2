# Everything sets itself up: a bare clone and Python 3.11 or newer are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Small networks gain nothing from many threads, and processes side by side lose by them.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-slow check style format zoo bench clean
.DEFAULT_GOAL := help

help:  ## Show what there is to make.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gradfeat needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## Pre-train, fit the four models, save and load one: the method in a minute.
	$(BIN)/gradfeat demo

test: $(READY)  ## Run the tests, but the slow ones.
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)  ## Run the slow tests.
	$(BIN)/python -m pytest -n 2 -m slow

check: style test test-slow  ## Format, lint, types, tests.

style: $(READY)  ## Format, lint and types alone.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(READY)  ## Write the code in its format.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

zoo: $(READY)  ## Measure the tangent on every family of timm, torchvision and transformers (an hour).
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.zoo --table docs/coverage.md

bench: $(READY)  ## Time a training pass against fine-tuning, jvp and the forward pass (idle machine).
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.training_pass

clean:  ## Remove what was made here.
	rm -rf $(VENV) demo results .mypy_cache .ruff_cache .pytest_cache
