# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed
# Debian packages that some tests talk to; those tests are skipped, with the reason, where they are missing.
SYSTEM := iproute2 openssh-server prometheus rsync

.DEFAULT_GOAL := help
.PHONY: help setup system demo test test-cluster lint bench up format protos clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*##/\1\t/' | awk -F '\t' '{printf "  make %-14s%s\n", $$1, $$2}'

setup: $(READY)  ## the environment alone, in .venv

$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard actor/turnwise_actor/compiled/*.*x* actor/turnwise_actor/compiled/*.h)
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

system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(SYSTEM) >/dev/null 2>&1; then \
		echo "Installing Debian packages that tests talk to: $(SYSTEM)"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install -y --no-install-recommends $(SYSTEM) >/dev/null || \
		echo "They cannot be installed: tests that need them are skipped"; \
	fi

demo: setup  ## teach the quickstart bot, stop it, start it again
	@$(BIN)/python examples/quickstart/demo.py

test: setup system  ## every test
	$(BIN)/python -m pytest

test-cluster: SYSTEM += redis-server
test-cluster: setup system  ## the long test of `ray up` (ten minutes)
	$(BIN)/python -m pytest tests/deploy/test_cluster.py -m cluster -s

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
