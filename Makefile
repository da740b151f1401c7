# `make bench` and `make test` from a fresh clone: a virtual environment, everything in it, the run.
# Both do nothing but check two time stamps when nothing has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIR ?= .

.PHONY: bench test check clean
.DEFAULT_GOAL := bench

bench: $(VENV)/.installed
	$(BIN)/kvbench run quick --dir $(DIR)

test: $(VENV)/.installed-dev
	scripts/test

check: $(VENV)/.installed-dev
	scripts/check

# The package with the KvikIO of this machine's CUDA major.
$(VENV)/.installed: pyproject.toml constraints.txt scripts/install
	PYTHON=$(PYTHON) scripts/install
	touch $@

# The tools that tests and checks need, on top.
$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

clean:
	rm -rf $(VENV)
