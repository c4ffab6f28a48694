# `make book` and `make test` are all there is to type: either makes .venv first, once.
#
#   make book              run the notebooks on built-in data and build the book     make book SIZE=small   on CamVid
#   make test              linter, tests, stored notebooks, book, its pages in a browser
#   make notebooks         run the notebooks in place: refreshes the outputs that are committed
#   make lock              resolve requirements.lock anew after a change of pyproject.toml (needs uv)
#   make clean             remove the built book; .venv, runs and records stay
#
# PYTHON=python3.12 picks the interpreter for a new .venv. UV= does without uv though it is installed.

PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
SIZE ?= tiny
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.installed
PAGES := book/_build/html
FIRST_PAGE := $(PAGES)/intro.html

.PHONY: help book test notebooks lock clean env lint check-notebooks stored-pages pages browser
.DEFAULT_GOAL := help

help:
	@sed -n '2,/^$$/s/^#* *//p' Makefile

book: env
	$(BIN)/python notebooks/execute.py --to book/notebooks -p size $(SIZE)
	@$(MAKE) --no-print-directory pages
	@echo "The book: $(CURDIR)/$(FIRST_PAGE)"

# The book is checked with the stored outputs: nbval has just found that running the notebooks gives them.
test: env
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory check-notebooks
	@$(MAKE) --no-print-directory stored-pages
	@$(MAKE) --no-print-directory browser

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One thread for each worker: two on two cores, and sums in the same order whatever the machine.
check-notebooks: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval -n $(WORKERS) --dist loadfile

stored-pages: env
	@mkdir -p book/notebooks && cp notebooks/*.ipynb book/notebooks/
	@$(MAKE) --no-print-directory pages

# --all: an incremental build is silent about pages that it does not read again.
pages: env
	$(BIN)/jupyter-book build -W --keep-going --all --quiet book

browser: env
	BOOK=$(PAGES) $(BIN)/python -m pytest tests/browser -rs

notebooks: env
	$(BIN)/python notebooks/execute.py --in-place

env: $(READY)

# A virtual environment whose Python is gone or too old is made anew; else only what differs from the lock is installed.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here. Name a Python of 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Installing what requirements.lock names into .venv (this once; with torch some gigabytes)"
ifneq ($(UV),)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
else
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv || { echo "Python's venv module is not complete here: install python3-venv, or uv." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endif
	@touch $(READY)

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --generate-hashes --strip-extras --no-header --quiet --output-file requirements.lock
	sed -nE 's/^([a-z0-9].*[^ ]) *\\$$/\1/p' requirements.lock > requirements-conda.txt

clean:
	rm -rf book/_build book/notebooks
