# Every target sets up what it needs in .venv and is quick the second time. Only python3 (3.11 or newer) and make are
# needed. Another interpreter: make clean && make test PYTHON=python3.13. Arguments for pytest: make test ARGS="-k name".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# uv installs when it is found, pip otherwise; `make UV= test` leaves it aside.
UV ?= $(shell command -v uv 2>/dev/null)

BIN := $(VENV)/bin
LOG := $(VENV)/install.log
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)

.DEFAULT_GOAL := help
.PHONY: help demo test test-latest lint types bench soak check clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: $(VENV)/.base  ## Run the example: a workflow is killed twice and loses nothing.
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev  ## Run the whole test suite.
	$(BIN)/python -m pytest -q --durations=10 $(ARGS)

test-latest:  ## Run it against the newest AbstractCore, in .venv-latest: about a gigabyte.
	@$(MAKE) --no-print-directory VENV=.venv-latest .venv-latest/.latest
	.venv-latest/bin/python -m pytest -q --durations=10 $(ARGS)

lint: $(VENV)/.dev  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types.
	$(BIN)/mypy

bench: $(VENV)/.base  ## Measure, and print one table.
	$(BIN)/python -m benchmarks

soak: $(VENV)/.dev  ## Run the same tests with larger numbers.
	ABSTRACTRUNTIME_SOAK=1 $(BIN)/python -m pytest -q --durations=10 --timeout=3600 $(ARGS)

check: demo lint types test  ## Everything that must hold before a change lands.

clean:  ## Remove the environment and all that was generated.
	rm -rf $(VENV) .venv-latest build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that a set-up that was interrupted starts again.
$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, %s is %d.%d; name another with PYTHON=" % (sys.executable, *v[:2]))'
	@echo "Setting up $(VENV) (log: $(LOG))"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e . > $(LOG) 2>&1 || { cat $(LOG); exit 1; }
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing the tools for development (log: $(LOG))"
	@$(INSTALL) -e '.[dev]' >> $(LOG) 2>&1 || { cat $(LOG); exit 1; }
	@touch $@

$(VENV)/.latest: $(VENV)/.dev
	@echo "Installing the newest AbstractCore (log: $(LOG))"
	@$(INSTALL) --upgrade 'abstractcore[server]' >> $(LOG) 2>&1 || { cat $(LOG); exit 1; }
	@touch $@
