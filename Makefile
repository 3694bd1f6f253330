# make quickstart   the main job on the embedded default, from nothing
# make test         the tests
# make check        what CI runs: format, lint, types, tests, docs, wheel

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep '^torch==' constraints.txt)
RUN    ?= runs/quickstart

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help quickstart test format lint types check wheel clean

help:
	@sed -n 's/^# //p' Makefile | head -3

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "InstructGym needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: see constraints.txt
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.runtime
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.runtime
	$(BIN)/instructgym run quickstart --out $(RUN)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev
	bash tests/wheel.sh

check: lint types test wheel

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
