# What one does with this tree. `make` says what there is; README.md says what to expect.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV    := .venv
PY      := $(VENV)/bin/python
NATIVE  := $(wildcard native/*.c native/*.h native/cni/*) native/build_ffi.py
C_FILES := $(wildcard native/*.c native/cni/*.c tests/fuzz/*.c benchmarks/*.c)
C_CHECK := -std=c11 -D_GNU_SOURCE -O3 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror
ASAN    := build/asan/canal_udp/_native.abi3.so
PYTEST  := $(PY) -m pytest
C_TESTS := $(shell grep -lE '(_abi|dataplane|stages|bed) import' tests/test_*.py)

export FUZZ_SECONDS ?= 60

.PHONY: help build check test test-cni lab bench asan fuzz clean needs-check needs-test needs-cni needs-lab needs-bench

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

needs-check needs-test needs-cni needs-lab needs-bench: needs-%:
	@tools/install-deps build $*

build: build/.native ## .venv with the project installed (editable)

$(VENV)/.made:
	@tools/install-deps build
	@echo "making $(VENV)"
	@"$$(tools/find-python)" -m venv --clear $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check setuptools wheel 'cffi>=1.16'
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml setup.py
	@echo "installing canal-udp and its dependencies into $(VENV)"
	@$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[test,dev]'
	@touch $@

build/.native: $(VENV)/.installed $(NATIVE)
	@tools/install-deps build
	@echo "compiling native/"
	@$(PY) -W ignore setup.py -q build_ext --inplace
	@mkdir -p build && touch $@
	@tools/give-back

check: needs-check build ## style, types, C warnings and lint, layers, unit tests (no root)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@echo "gcc $(C_CHECK)"
	@for file in $(C_FILES); do gcc $(C_CHECK) -I native -c -o /dev/null $$file; done
	cppcheck -q --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 -D_GNU_SOURCE -I native native
	$(PYTEST) -q --ignore=tests/netns --ignore=tests/cni tests

test: needs-test build ## every test, with real packets between network namespaces (root)
	@trap tools/give-back EXIT; $(PYTEST) tests

test-cni: needs-cni build ## the CNI plug-in under the runtimes' library, with neighbours and faults (root)
	@trap tools/give-back EXIT; CNI_KILLS=$${CNI_KILLS:-1000} $(PYTEST) --timeout 3600 tests/cni tests/netns/test_cni.py

lab: needs-lab build ## three hosts, six pods, real daemons and traffic on this machine (root)
	@trap tools/give-back EXIT; $(VENV)/bin/canal lab demo

$(VENV)/.bench: $(VENV)/.installed
	@echo "installing what draws the pictures into $(VENV)"
	@$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[bench]'
	@touch $@

bench: needs-bench build $(VENV)/.bench ## measure stages, and Canal against kernel VXLAN and one packet per system call (root)
	@$(VENV)/bin/canal bench stages -j build/bench/stages.json
	@echo
	@$(VENV)/bin/canal bench overlay -j build/bench/overlay.json --picture build/bench/overlay.svg
	@echo "reports and picture: build/bench/; more: canal bench overlay --full"

$(ASAN): $(VENV)/.installed $(NATIVE)
	@echo "compiling native/ with -fsanitize=address,undefined"
	@CANAL_SANITIZE=1 $(PY) -W ignore setup.py -q build_ext --build-lib build/asan --build-temp build/asan/tmp
	@touch $@

asan: build $(ASAN) ## the unit tests that reach C, with it under AddressSanitizer and UBSan
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		CANAL_LIBRARY=$(ASAN) $(PYTEST) -q $(C_TESTS)

fuzz: ## every target of tests/fuzz for FUZZ_SECONDS (60)
	@command -v "$${CLANG:-clang-19}" >/dev/null || tools/install-deps fuzz
	@tools/fuzz

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info canal_udp/_native*.so .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . \( -name __pycache__ -o -name .mypy_cache \) -prune -exec rm -rf {} +
