# Everything sets itself up: a bare clone and Python 3.11 or newer are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Small networks gain nothing from many threads, and processes side by side lose by them.
export OMP_NUM_THREADS ?= 1

# What finds most faults a second: the laws of the house, the mathematics against closed forms and dense Jacobians, the
# tangent of every operation, and one way from raw data to a saved model. Here belongs a file whose tests take some five
# seconds at most, all together; of a longer one name the test that would fail first.
FAST := tests/house tests/losses tests/metrics tests/model \
	$(addprefix tests/solvers/,test_dual.py test_dual_newton.py test_first_order.py test_newton.py test_probe.py \
		test_subspace.py::test_squared_loss_is_kernel_ridge_regression \
		test_subspace.py::test_without_gradients_it_is_logistic_regression \
		test_subspace.py::test_weights_give_the_logits_of_the_solution \
		test_gap.py::test_mirror_images_count_in_the_gap) \
	$(addprefix tests/linearization/,test_check.py test_fold.py test_inplace.py test_one_pixel.py test_programs.py \
		test_rules.py test_theta2.py) \
	$(addprefix tests/estimators/,test_penalties.py::test_given_penalties_are_used \
		test_closed_form.py::test_leave_one_out_chooses_gradients_where_they_help \
		test_closed_form.py::test_saved_merged_and_repeated)

.PHONY: help demo test test-slow check check-fast style format zoo bench clean
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

check-fast: style  ## Format, lint, types, and the tests that find most: under a minute, after every change.
	$(BIN)/python -m pytest -n 2 -m "not slow" $(FAST)

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
