# Commands for a fresh machine with Python 3.11 or newer:
#   make demo   three teachers of handwritten digits into one small network
#   make test   linter and quick tests; make test-all: every test
#   make docs   the documentation as a site, in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs test test-all

demo: $(VENV)/installed
	$(BIN)/python main.py --flagfile=experiments/digits/quickstart.flags

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

# Also kills, several processes, a browser, all methods, and fuzzing from another seed
# each day: FUZZ_SEED=20260131 make test-all draws that day's again.
test-all: $(VENV)/installed-test docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	FUZZ_SEED=$${FUZZ_SEED:-$$(date +%Y%m%d)} $(BIN)/python -m pytest

# Strict: a dead link ends it.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is build/site/index.html"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are written last: an install that broke off is made again.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $(VENV)/installed $@
