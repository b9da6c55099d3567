# Two commands do everything on a fresh machine with python3, make and git:  make demo   make test
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTABLE := $(VENV)/.ready-test
SHELL := /bin/bash
# Steps and tests start hundreds of processes; with this set, each would compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint docs bench mutants test-lowest clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(READY)  ## raw data -> shards -> training -> report, about 5 minutes on 2 cores
	$(BIN)/python cli.py demo

# Three on two cores: a fifth of the time tests wait, for servers, children and each other. A file stays in one
# process, so that what its tests share is made once; in the order of the folders, for unit tests fill the end best.
test: lint  ## format, lint, types and the tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(TESTABLE)  ## format, lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(TESTABLE)  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

# Left out: attack, which goes on for hours and keeps its folder; gpu, which needs one; methods, which takes a day.
bench: $(TESTABLE)  ## the measurements behind benchmarks/RESULTS.md
	@for script in build index masks coco_parse plan stream beside peers large remote storage step proof predict serve \
	  growth inference sample_voc; do \
	  echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done

mutants: $(TESTABLE)  ## a sample of wrong lines in the core, and whether a test notices each; an hour, goes on where it stopped
	$(BIN)/python -m tests.mutants

test-lowest:  ## unit, golden and contract tests with the oldest versions that pyproject.toml allows
	bash tests/lowest.sh

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo site

# Stamps are written last: an interrupted installation is finished by the next call. What is imported is compiled then:
# compiling all of it, tests of libraries included, takes a third of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "python3 cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV): 5 GB, nearly all of it torch"
	@$(INSTALL) '.[onnx,tensorboard]'
	@touch $@

$(TESTABLE): $(READY)
	@echo "installing what the tests need: 1.5 GB"
	@$(INSTALL) '.[test]'
	@touch $@
