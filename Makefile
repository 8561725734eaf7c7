# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench up format protos clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*##/\1\t/' | awk -F '\t' '{printf "  make %-8s%s\n", $$1, $$2}'

setup: $(READY)  ## the environment alone, in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch first, then the rest (about two minutes)"
	@$(PIP) torch
	@$(PIP) -e '.[dev]'
	@touch $@

$(PEERS): $(READY)
	@echo "Installing what the benchmarks compare with"
	@$(PIP) -e '.[bench]'
	@touch $@

demo: setup  ## teach the quickstart bot, stop it, start it again
	@$(BIN)/python examples/quickstart/demo.py

test: setup  ## every test
	$(BIN)/python -m pytest

lint: setup  ## ruff, mypy, pyright, import rules, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

bench: $(PEERS)  ## the benchmarks in their short forms, and a table
	@$(BIN)/python bench/run.py

up: setup  ## serve the quickstart bot
	@$(BIN)/turnwise up --domain examples/quickstart/domain.yaml

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup  ## generate client/turnwise/v1 again
	$(BIN)/python protos/generate.py

clean:  ## remove what make made; data folders stay
	rm -rf $(VENV) .protoc .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
