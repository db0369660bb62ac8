# Everything on a machine with Python 3.11 or 3.12, git and make: `make demo`, `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
STAMP := .venv/.installed
CODE := flows services models data infra tests benchmarks

# uv does not read pip's setting; pip separates places by spaces, uv by commas.
comma := ,
empty :=
space := $(empty) $(empty)
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))

.PHONY: help demo test tests coverage soak api clients lint style types lock clean install

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with the locked packages and this project, editable

demo: $(STAMP) ## From nothing to served pictures: data, training, judging, promotion, requests
	@$(BIN)/atelier demo

test: $(STAMP) ## Lint, types, layers and every test that needs no GPU
	@began=$$SECONDS; \
	$(MAKE) --no-print-directory style; \
	$(MAKE) --no-print-directory -j2 types tests; \
	echo "== lint, types, layers and tests passed in $$((SECONDS - began)) s"

# Bytecode once, where Python is told to write none: tests start ours in a hundred processes.
tests: $(STAMP)
	@echo "== layers, tests"
	@$(BIN)/python -m compileall -q $(filter-out tests benchmarks,$(CODE))
	@$(BIN)/python -m pytest -m "not gpu" -n 3 --durations=15

coverage: $(STAMP) ## The tests again, slower, with the lines and branches that none of them takes
	@$(BIN)/python -m pytest -q -m "not gpu" -n 3 --cov --cov-report=term:skip-covered

api: $(STAMP) ## 5,000 random requests, good and bad: nothing undocumented, nothing good refused
	@API_REQUESTS=5000 $(BIN)/python -m pytest -q --log-cli-level=info --durations=15 --timeout=1800 tests/services/test_api.py

soak: $(STAMP) ## Load and kill -9 of each process on a stack of its own; at most ten minutes
	@$(BIN)/python -m benchmarks.soak

clients: $(STAMP) ## What openai, litellm and its proxy, langchain, instructor and lm-eval get, as a table
	@$(BIN)/python -m benchmarks.clients

lint: style types ## Ruff (lint, format) and mypy (strict)

style: $(STAMP)
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@echo "== types"
	@$(BIN)/mypy

lock: $(STAMP) ## Write requirements.lock: names and versions, for every group
	@$(BIN)/uv pip compile pyproject.toml --group dev --group peers --no-annotate --quiet --python-version 3.11 \
	  --upgrade --custom-compile-command "make lock" --output-file requirements.lock
	@# torch pins its CUDA wheels to the number itself, and a machine without a GPU installs none of them
	@sed -i.bak -e 's/+cpu$$//' -e '/^\(cuda-\|nvidia-\|triton==\)/d' requirements.lock && rm requirements.lock.bak
	@git --no-pager diff --stat -- requirements.lock

clean: ## Remove what make and the tools wrote; keeps data/ and .atelier/
	@if [ -x $(BIN)/atelier ]; then $(BIN)/atelier down || true; fi
	@rm -rf .venv .venv-clients .venv-proxy .venv-sentences .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist *.egg-info
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# One interpreter that runs (a pyenv shim may exist and not run); bytecode now, not at the first start.
$(STAMP): pyproject.toml requirements.lock
	@for name in python3.11 python3.12 python3; do \
	  if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	  then python=$$name; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	  echo "no Python 3.11 or 3.12 on PATH; install one (with its venv module) and run make again" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "making .venv with $$($$python --version)"; \
	  $$python -m venv .venv || { rm -rf .venv; \
	    echo "$$python has no venv module; install it (Debian: $$python-venv) and run make again" >&2; exit 1; }; \
	fi
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@VIRTUAL_ENV="$$PWD/.venv" $(BIN)/uv pip install --compile-bytecode \
	  -c requirements.lock -e . --group dev --group peers
	@touch $@
