# bigtrain's chores. `make` alone lists them. All is kept in .venv; no step is done twice.
#   PYTHON=python3.12      which Python makes .venv
#   ARGS="…"               handed on: overrides for `make train`, pytest's arguments for `make test`
#   EXTRAS=wandb,gpu       optional parts for `make train` (see pyproject.toml)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

new_enough := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(new_enough)' 2>/dev/null && echo $$p && exit; done; echo python3)
EXTRAS ?= core
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# pip draws progress bars on a terminal; elsewhere a line for each download is enough.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
pip_install = if [ -t 1 ]; then $(PIP_INSTALL) $(1); \
	else $(PIP_INSTALL) $(1) | sed -un '/^ *Downloading/p; s/^\(Building\|Installing\) .*/  \1 …/p'; fi

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: train
train: $(VENV)/.installed-$(EXTRAS) ## install, then train a small language model on real text (recipe=quickstart)
	@$(BIN)/bigtrain train recipe=quickstart $(ARGS)

.PHONY: test
test: $(VENV)/.installed-test ## install, then run the whole default test suite
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: test-cluster
test-cluster: $(VENV)/.installed-test ## test on real Slurm nodes and ssh hosts, made of namespaces (root on Debian; skips elsewhere)
	@$(BIN)/python -m pytest tests/cluster $(ARGS)

.PHONY: support
support: $(VENV)/.installed-test ## write the README's support matrix from what the last tests ran
	@$(BIN)/python -m tests.support

.PHONY: check
check: $(VENV)/.installed-dev ## formatting, lint, types (mypy strict) and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/.installed-benchmark ## run the benchmark suites beside other trainers (ARGS="peers --rounds 5"); benchmarks/results
	@$(BIN)/bigtrain bench $(ARGS)

DATA ?=
.PHONY: rows
rows: $(VENV)/.installed-test ## train the rows of real data from the sets in DATA=DIR (hours); results/rows.json and the README
	@test -n "$(DATA)" || { echo "make rows DATA=DIR: the folder with the data sets"; exit 2; }
	@$(BIN)/python benchmarks/rows --data $(DATA) $(ARGS)

.PHONY: horovod
horovod: $(VENV)/.installed-core ## build Horovod for engine=horovod (about 10 minutes, once a torch and Python)
	@docker/build_horovod.sh $(BIN)/python

.PHONY: clean
clean: ## remove .venv, build output and caches (never runs/)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find bigtrain tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras. dev holds test, and test holds core, so the larger set marks the smaller ones too.
holds-test := core
holds-dev := test core

$(VENV)/.installed-%: pyproject.toml $(VENV)/.torch
	@echo "Installing bigtrain$(if $(filter core,$*),, [$*]) into $(VENV) …"
	@$(call pip_install,-e '.$(if $(filter core,$*),,[$*])')
	@touch $@ $(foreach set,$(holds-$*),$(VENV)/.installed-$(set))

# torch alone and first: whatever build of it this machine's pip is set up for (CPU, a CUDA release) stays the one used.
$(VENV)/.torch: pyproject.toml $(VENV)/.created
	@torch=$$($(BIN)/python -c 'import re, tomllib; needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; print(*[need for need in needs if re.match(r"torch\b", need)])'); \
	echo "Installing $$torch into $(VENV) (the largest download) …"; \
	$(call pip_install,"$$torch")
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c '$(new_enough)' 2>/dev/null || { \
		echo "bigtrain needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Say which one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments: its venv module is missing (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
