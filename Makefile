# Every target makes the virtual environment it needs and uses it again; python3, make and a C++ compiler are enough.
# CMake, ninja and nanobind come from the package index while the native module is built.

PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
RUN := $(VENV)/bin/python

NATIVE := src/speq/kernels/native
CXX_SOURCES := $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.h)
# One release for everyone, so that a plain Linux machine gets the one that is tested.
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow check format bench sanitize clean

help:
	@echo "make demo       fetch a small model, let it draft for itself, and compare with plain decoding"
	@echo "make test       run the tests"
	@echo "make check      linters, types and formatting"
	@echo "make format     apply the formatting"
	@echo "make setup      only install speq into $(VENV)"
	@echo "make test-slow  the tests that need minutes or a real model"
	@echo "make sanitize   the native tests under the address and undefined-behaviour sanitizers"
	@echo "make bench      the measurements behind the claims"
	@echo "make clean      remove what these targets made here (models stay in the cache)"

setup: $(VENV)/.speq

demo: $(VENV)/.speq
	@$(RUN) -m speq.bench.demo

test: $(VENV)/.test
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/.test
	$(RUN) -m pytest -m slow

check: $(VENV)/.check
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.check
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.speq
	for script in benchmarks/*.py; do $(RUN) $$script || exit 1; done

sanitize: $(VENV)/.sanitize
	tests/run_sanitized.sh $(VENV)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. An editable install: Python sources are used where they are, the native module is rebuilt when it changes.
$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "speq needs Python 3.10 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.speq: $(VENV)/.python pyproject.toml $(NATIVE)/CMakeLists.txt $(CXX_SOURCES)
	$(PIP) --editable .
	@touch $@

# The extras of an installed speq: nothing is built again.
$(VENV)/.test: $(VENV)/.speq
	$(PIP) $(TORCH)
	$(PIP) 'speq[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.speq
	$(PIP) 'speq[check]'
	@touch $@
