# Everything a person or CI runs. Each target makes its own virtual environment from this project's files.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(wildcard setup.py) $(wildcard src/normball/kernels/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo test check check-native lint bench ladder docs docs-serve docs-write pictures dist clean

help:  ## what can be done
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# One stamp for each set of extras; pip does nothing for what is installed.
$(VENV)/.%: $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing normball[$*] into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/.demo  ## train on handwritten digits, free and constrained; check and constrain the weights: all in demo/
	$(BIN)/python examples/digits.py $(DEMO)

test: $(VENV)/.test  ## the tests
	$(BIN)/python -m pytest

check: lint test  ## lint, types and tests

lint: $(VENV)/.check $(VENV)/.test  ## lint, types, and the tables of README and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/support.py --check
	$(BIN)/python benchmarks/report.py --check

# The same sources and laws, with every read, write and operation checked; built apart from what is installed.
NATIVE := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
SANITIZED := LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(NATIVE)
check-native: $(VENV)/.test  ## the C kernels under the address and undefined-behaviour sanitizers
	@rm -rf $(NATIVE) && mkdir -p $(NATIVE) && cp -r src/normball $(NATIVE)/ && rm -f $(NATIVE)/normball/kernels/*.so
	CFLAGS="$(SANITIZERS)" $(BIN)/python setup.py --quiet build_ext --force --build-lib $(NATIVE) --build-temp $(NATIVE)/objects
	$(SANITIZED) $(BIN)/python -c 'from normball.kernels import _native as it; assert "$(NATIVE)" in it.__file__, it.__file__'
	$(SANITIZED) $(BIN)/python -m pytest tests/test_kernels.py -k 'native or way or memory or long_groups'

bench: $(VENV)/.bench  ## time against bare memory and all peers, answers checked first; BENCH=--quick for a minute of it
	$(BIN)/python benchmarks/run.py $(BENCH)

ladder: $(VENV)/.bench  ## how the kernels became fast: each step from the plain loop on, checked and timed
	$(BIN)/python benchmarks/ladder.py

# The banner of the theme's makers is about a later version.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
docs: $(VENV)/.docs  ## the documentation as a site, in site/
	$(MKDOCS) build --strict

docs-serve: $(VENV)/.docs  ## the same in a browser, made again as you write
	$(MKDOCS) serve

docs-write: $(VENV)/.test  ## run the pages' programs, and write what they print, the notebook and the tables into docs/
	$(BIN)/python -W ignore docs/pages.py --write
	$(BIN)/python docs/axes.py

pictures: $(VENV)/.test $(VENV)/.demo  ## draw every picture in docs/, from the runs that its page speaks of
	$(BIN)/python docs/pictures.py
	$(BIN)/python docs/checkpoint.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python examples/digits.py --out build/demo && cp build/demo/norms.png docs/norms.png
	$(BIN)/python examples/pymc_regression.py --out build/demo && cp build/demo/pymc_regression.png docs/pymc_regression.png

dist: $(VENV)/.check  ## sdist and wheel in dist/, looked at, installed and used with each light extra alone; DIST=--all
	@rm -rf dist
	LDFLAGS="$$LDFLAGS -s" $(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tests/dist.py dist $(DIST)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist site demo src/*.egg-info src/normball/kernels/*.so
