# make demo and make test set up what is missing first. PYTHON=… chooses the interpreter, ARGS=… is passed on,
# JOBS=… is the number of processes that run tests.

PYTHON ?= python3
ARGS ?=
RUN := .venv/bin/python
# Tests wait for disks and clocks as much as they work: one process more than there are processors.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-azurite check bench bench-full wheel clean set-up set-up-dev set-up-bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/    make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

demo: set-up ## set up, then run the main job on real input (a minute or two)
	@$(RUN) -m demo $(ARGS)

test: set-up-dev ## set up, then run the tests, but for the slow ones
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-slow: set-up-dev ## run the slow tests
	@$(RUN) -m pytest -m slow $(ARGS)

test-azurite: set-up-dev ## install Azurite into .cache, which takes npm, and test archives on it
	@test -x .cache/azurite/node_modules/.bin/azurite-blob || npm install --silent --no-fund --prefix .cache/azurite azurite
	@$(RUN) -m pip install --quiet adlfs
	@$(RUN) -m pytest tests/test_azurite.py $(ARGS)

check: set-up-dev ## run the linter, the formatter and the type checker; they change nothing
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy

bench: set-up-bench ## set up with its peers, then measure the package beside them (minutes)
	@$(RUN) -m benchmarks $(ARGS)

bench-full: set-up-bench ## the same with the sizes that are reported (an hour or more)
	@$(RUN) -m benchmarks --full $(ARGS)

wheel: set-up-dev ## build dist/*.whl
	@rm -rf build dist
	@$(RUN) -m build --wheel .

clean: ## remove everything that the other targets made
	rm -rf .venv build dist demo-data *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

set-up:
	@scripts/setup.sh run

set-up-dev:
	@scripts/setup.sh dev

set-up-bench:
	@scripts/setup.sh bench
