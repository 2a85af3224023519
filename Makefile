# make demo: the main job.  make test: the tests.  Both create .venv first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LANE := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS := $(wildcard constraints/$(LANE).txt)
JOBS ?= 2

.PHONY: demo test test-slow lint types parity bench doctor clean

demo: $(VENV)/.core
	$(BIN)/graft sweep trec_strategies --directory runs/demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyrefly check

# PyTorch, Transformers and PEFT: the references that our numbers and our speed are compared with.
parity: $(VENV)/.core
	$(PIP) torch==2.13.0
	$(PIP) $(CONSTRAINTS:%=-c %) -e '.[parity,test]'

bench: parity
	$(BIN)/python tools/bench_train.py

doctor: $(VENV)/.core
	$(BIN)/graft doctor

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pip 25.1 and newer take up a broken download where it stopped.
$(VENV)/.core: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing into $(VENV) (a minute or two the first time)"
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) $(CONSTRAINTS:%=-c %) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) $(CONSTRAINTS:%=-c %) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) $(CONSTRAINTS:%=-c %) -e '.[test,dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist
