# `make demo` and `make test` work on a fresh machine with Python 3.11+, pip and make; nothing else is typed before.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test lint format constraints clean

demo: $(VENV)/.installed  ## train a tiny model with a planted cause, trace it, remove the culprits, train again
	$(VENV)/bin/headwater demo

test: $(VENV)/.installed-dev  ## the whole suite
	$(VENV)/bin/pytest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

constraints: $(VENV)/.installed-dev  ## pin what is installed now
	(echo "# Development pins: \`pip install -c constraints.txt -e .[dev]\`. Refresh with \`make constraints\`."; \
	$(PIP) freeze --exclude-editable | grep -v -i '^-e\|^headwater' | sed 's/+cpu//') > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) demo-run .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headwater needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed
