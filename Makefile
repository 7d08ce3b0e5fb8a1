# Two commands for a fresh machine with Python 3.10 or newer:
#   make demo   three teachers of handwritten digits into one small network
#   make test   linter and tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test

demo: $(VENV)/installed
	$(BIN)/python main.py --flagfile=experiments/digits/quickstart.flags

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are written last: an install that broke off is made again.
$(VENV)/installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $(VENV)/installed $@
