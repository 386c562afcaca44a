# Each target works on a fresh checkout: it builds .venv first, and again when pyproject.toml is newer.
# Another interpreter: make test PYTHON=python3.12

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
ENV := .venv
READY := $(ENV)/.ready

.PHONY: help demo app test check bench

help:
	@echo "make demo    restore a photo with the built-in prior; results in demo/"
	@echo "make app     the web application, at http://127.0.0.1:7860"
	@echo "make bench   score two methods on one picture; tables in bench/report/"
	@echo "make check   format, lint and types: seconds"
	@echo "make test    the same and all tests: what CI runs"

demo: $(READY)
	@$(ENV)/bin/stsl demo --out demo

app: $(READY)
	@$(ENV)/bin/stsl app

bench: $(READY)
	@$(ENV)/bin/stsl bench run mini-table1 --limit 1 --methods stsl,psld --tasks sr4 --fast --out bench
	@$(ENV)/bin/stsl bench report bench

check: $(READY)
	@scripts/check --no-tests

test: $(READY)
	@scripts/check

# One pip call resolves torch and torchvision together: two would pair builds that do not fit. awk shows what is being
# downloaded, and none of the rest.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stsl needs Python 3.11 or newer and found $$($(PYTHON) --version 2>&1 || true)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing stsl and PyTorch into $(ENV): several minutes the first time"
	@test -x $(ENV)/bin/python || $(PYTHON) -m venv $(ENV)
	@$(ENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off --editable ".[dev]" \
	  | awk '/^ *Downloading.*whl |^Building|^Installing/ { print "  " substr($$0, 1, 110); fflush() }'
	@touch $@
