# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test up lint format bench protos clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## the environment alone, in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[demo]' $$($(BIN)/python protos/groups.py dev)
	@touch $@

demo: setup  ## teach the quickstart bot, stop it, start it again
	$(BIN)/python examples/quickstart/demo.py

test: setup  ## every test
	$(BIN)/python -m pytest

up: setup  ## serve the quickstart bot
	$(BIN)/turnwise up --domain examples/quickstart/domain.yaml

lint: setup  ## ruff, mypy, pyright, import rules, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup  ## generate client/turnwise/v1 again
	$(BIN)/python protos/generate.py

clean:  ## remove what make made, the data folder excepted
	rm -rf $(VENV) .protoc .mypy_cache .ruff_cache .pytest_cache demo-out
