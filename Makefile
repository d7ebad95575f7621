# Every target makes the virtual environment it needs and uses it again; python3, make and a C++ compiler are enough.
# CMake, ninja and nanobind come from the package index while the native module is built.

PYTHON ?= python3
VENV ?= .venv
SANITIZED := $(VENV)-sanitized
PIP := -m pip --disable-pip-version-check install --quiet
RUN := $(VENV)/bin/python

NATIVE := src/speq/native
CXX_SOURCES := $(foreach folder,$(NATIVE) $(NATIVE)/*,$(wildcard $(folder)/*.cpp $(folder)/*.h))
BUILT_FROM := pyproject.toml $(NATIVE)/CMakeLists.txt $(CXX_SOURCES)
# What `make bench` measures: a catalogue name, hub id, directory or .gguf file.
MODEL ?= smollm2-135m-instruct
# One release for everyone, so that a plain Linux machine gets the one that is tested.
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-hardware check format bench recording sanitize clean

help:
	@echo "make demo       fetch a small model, let it draft for itself, and compare with plain decoding"
	@echo "make test       run the tests"
	@echo "make check      linters, types and formatting"
	@echo "make format     apply the formatting"
	@echo "make setup      only install speq into $(VENV)"
	@echo "make test-slow  the tests that need minutes or a real model"
	@echo "make test-hardware  all tests of the accelerator, fast and slow: RTL, Verilog in Verilator, proofs, synthesis"
	@echo "make sanitize   the native tests under the address and undefined-behaviour sanitizers"
	@echo "make bench      the measurements behind the claims; MODEL=... chooses the model"
	@echo "make recording  draw the terminal session of README.md anew"
	@echo "make clean      remove what these targets made here (models stay in the cache)"

setup: $(VENV)/.speq

demo: $(VENV)/.speq
	@$(RUN) -m speq.bench.demo

test: $(VENV)/.test
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/.test
	$(RUN) -m pytest -m "slow" --ignore tests/hardware

test-hardware: $(VENV)/.test
	$(RUN) -m pytest tests/hardware

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
	$(VENV)/bin/speq bench kernels $(MODEL)
	$(VENV)/bin/speq bench decode $(MODEL) --prompts benchmarks/prompts --count 7
	$(RUN) benchmarks/agreement.py $(MODEL)
	$(RUN) benchmarks/exactness.py $(MODEL)

recording: $(VENV)/.test
	$(RUN) benchmarks/record.py docs/recording.svg $(VENV)/bin/speq verify smollm2-135m-instruct

# Python itself is not instrumented: the sanitizer's library goes in first, and what Python never frees is no leak of ours.
sanitize: $(SANITIZED)/.speq
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(SANITIZED)/bin/python -m pytest -p no:cacheprovider -m "not slow" \
		tests/formats tests/backends/cpu tests/decoding tests/conversion/test_disagreement.py

clean:
	rm -rf $(VENV) $(SANITIZED) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. An editable install: Python sources are used where they are, the native module is rebuilt when it changes.
%/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "speq needs Python 3.10 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.speq: $(VENV)/.python $(BUILT_FROM)
	$(RUN) $(PIP) --editable .
	@touch $@

# The extras of an installed speq: nothing is built again.
$(VENV)/.test: $(VENV)/.speq
	$(RUN) $(PIP) $(TORCH)
	$(RUN) $(PIP) 'speq[test,hardware,verification]'
	@touch $@

$(VENV)/.check: $(VENV)/.speq
	$(RUN) $(PIP) 'speq[check]'
	@touch $@

$(SANITIZED)/.speq: $(SANITIZED)/.python $(BUILT_FROM)
	$(SANITIZED)/bin/python $(PIP) -C build-dir=build/sanitized -C cmake.define.SPEQ_SANITIZE=ON --editable .
	$(SANITIZED)/bin/python $(PIP) pytest hypothesis safetensors
	@touch $@
