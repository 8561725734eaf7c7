# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed
# Debian packages that some tests talk to; those tests are skipped, with the reason, where they are missing.
SYSTEM := iproute2 openssh-server prometheus rsync
# ... and what the compiled turn path is built with; without them it is left out, and a turn costs more.
NATIVE := gcc libc6-dev libnghttp2-dev libssl-dev python3-dev

# $(call install,PACKAGES,WHAT IS SAID BEFORE,WHAT IS SAID IF IT FAILS): of Debian, as root, if one is missing.
define install
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(1) >/dev/null 2>&1; then \
	echo $(2); \
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	apt-get -qq install -y --no-install-recommends $(1) >/dev/null; } || echo $(3); \
fi
endef

.DEFAULT_GOAL := help
.PHONY: help setup system demo test test-cluster lint bench up format protos clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*##/\1\t/' | awk -F '\t' '{printf "  make %-14s%s\n", $$1, $$2}'

setup: $(READY)  ## the environment alone, in .venv

$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard actor/turnwise_actor/compiled/*.*x* actor/turnwise_actor/compiled/*.h)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=…")'
	@$(call install,$(NATIVE),"Installing what the turn path is compiled with: $(NATIVE)", \
		"They cannot be installed: without them a turn costs more")
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
	@$(call install,$(SYSTEM),"Installing Debian packages that tests talk to: $(SYSTEM)", \
		"They cannot be installed: tests that need them are skipped")

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
