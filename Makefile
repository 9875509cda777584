# One environment, .venv, for everything below. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format types check constraints install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install  ## the main job, under 10 minutes: SmolLM2's heads ranked and ablated on real Java
	$(BIN)/aplens demo --folder runs/demo

test: install  ## the whole test suite, the real SmolLM2 included
	$(BIN)/python -m pytest

test-fast: install  ## the tests that need neither the real model nor a browser
	$(BIN)/python -m pytest -m "not real and not browser"

lint: install  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## let ruff mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## mypy over the package
	$(BIN)/mypy

check: lint types test  ## everything CI runs

install: $(STAMP)  ## the environment, with pinned versions from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "aplens needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	@echo "Installing aplens and its packages; torch makes this a few minutes and several GB."
	$(PIP) install --quiet --constraint constraints.txt --editable ".[gguf,umap,hub]" --group dev
	@touch $@

constraints:  ## refresh constraints.txt: the newest versions that pyproject.toml allows
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-constraints/bin/python -m pip install --quiet "transformer-lens<4" --editable ".[gguf,umap,hub]" --group dev
	@{ echo "# Made by 'make constraints': the versions the two commands are tested with."; \
	   $(VENV)-constraints/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools; } > constraints.txt
	rm -rf $(VENV)-constraints

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
