# `make demo` on a fresh clone needs Python 3.11 or later, pip and make. Everything is installed into .venv, nothing
# elsewhere; a target installs only what it needs, once, and again when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
# Processes that run tests at the same time.
JOBS ?= auto
# More arguments for pytest: make test ARGS="-k lineage"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Pyright and its Node.js come as wheels: use those, and never look for newer ones or for another Node.js.
PYRIGHT := PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Each stamp says: what this group needs is in .venv.
LIGHT := $(VENV)/.installed-light
LIGHTNING := $(VENV)/.installed-lightning
DEV := $(VENV)/.installed-dev
FLOORS_VENV := .venv-floors
FLOORS := $(FLOORS_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-lightning test test-floors powercut lint lint-code lint-format lint-types lint-imports format bench bench-callbacks dev strace clean distclean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(LIGHT) ## The main job on real data with scikit-learn: versions, runs, lineage, what is stale
	@$(BIN)/python examples/digits.py

demo-lightning: $(LIGHTNING) ## The same story with a Lightning Trainer and its checkpoints (installs torch)
	@$(BIN)/python examples/digits_lightning.py

# In two parts, both of which run: the sweeps of faults fork thousands of times, which takes longer the more frameworks
# their process has loaded. Where ARGS choose, one part may have no test (pytest's exit code 5).
test: $(DEV) strace ## All tests (installs torch)
	@status=0; empty=0; for part in "tests --ignore=tests/integrations" tests/integrations; do \
	  echo "$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $$part $(ARGS)"; \
	  $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $$part $(ARGS); code=$$?; \
	  if [ $$code = 5 ]; then empty=$$((empty + 1)); elif [ $$code != 0 ]; then status=$$code; fi; \
	done; \
	if [ $$empty = 2 ] || { [ $$empty = 1 ] && [ -z "$(strip $(ARGS))" ]; }; then status=5; fi; \
	exit $$status

# Keras 3.5 comes without its own tests, which one of ours runs.
test-floors: $(FLOORS) ## The integrations with the oldest releases that are supported, in .venv-floors
	KERAS_BACKEND=torch $(FLOORS_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -p no:cacheprovider \
	  -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::PendingDeprecationWarning \
	  --ignore tests/integrations/test_keras_upstream.py \
	  tests/integrations tests/core/test_fingerprints.py tests/core/test_predictions.py $(ARGS)

powercut: $(DEV) strace ## Cut the power under a store at system calls (root, loop mounts; exit code 77: not run)
	$(BIN)/python tests/faults/powercut.py $(ARGS)

lint: lint-code lint-format lint-types lint-imports ## ruff, pyright, and who may import whom (-k: all four, whatever fails)

lint-code: $(DEV)
	$(BIN)/ruff check .

lint-format: $(DEV)
	$(BIN)/ruff format --check .

lint-types: $(DEV)
	$(PYRIGHT)

lint-imports: $(DEV)
	$(BIN)/lint-imports

format: $(DEV) ## Write what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## What it costs, each figure beside its floor (3 minutes; ARGS=--quick: 1)
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-callbacks: $(DEV) ## What a callback costs a training: saves, drain, steps, memory
	$(BIN)/python benchmarks/callbacks.py $(ARGS)

dev: $(DEV) ## Install everything and run nothing

clean: ## Remove caches, builds and what the examples wrote
	rm -rf build dist examples/out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find core integrations tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## ... and .venv
	rm -rf $(VENV) $(FLOORS_VENV)

# ----------------------------------------------------------------------------------------------------------------------

# A .venv that is only half made (Debian splits venv off) is removed, so that the next try starts anew.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "begat needs Python 3.11 or later, and '$(PYTHON)' was not found." >&2; \
	  echo "Name one that is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "begat needs Python 3.11 or later, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
	  echo "Name one that is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(LIGHT): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing begat and scikit-learn into $(VENV) (once) ..."
	@$(INSTALL) -e ".[sklearn]"
	@touch $@

# torch comes first and by itself, at the pinned version: asked for by another package it could be any newer build.
# A torch of that version that is in .venv already is kept, so put a CPU build there first to save the CUDA packages.
$(LIGHTNING): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing begat, scikit-learn, torch and Lightning into $(VENV) (once, takes a while) ..."
	@$(INSTALL) torch
	@$(INSTALL) -e ".[sklearn,lightning]"
	@touch $(LIGHT) $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing everything for tests and lint into $(VENV) (once, takes a while) ..."
	@$(INSTALL) torch
	@$(INSTALL) -e ".[dev]"
	@touch $(LIGHT) $(LIGHTNING) $@

# The oldest releases. What old frameworks warn of in today's numpy and Python is not ours to mend: see test-floors.
$(FLOORS): pyproject.toml constraints-floors.txt
	@echo "Installing the oldest supported releases into $(FLOORS_VENV) (once, takes a while) ..."
	@"$(PYTHON)" -m venv $(FLOORS_VENV)
	@$(FLOORS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floors.txt torch
	@$(FLOORS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floors.txt -e ".[test]"
	@touch $@

# One test module kills the library at each of its system calls. Without strace it fails; it does not skip.
strace:
	@command -v strace >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq strace; \
	  else \
	    echo "strace is missing: the sweep over system calls will fail. Debian, Ubuntu: sudo apt-get install strace" >&2; \
	  fi; }
