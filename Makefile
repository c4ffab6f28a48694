# `make book` and `make test` are all there is to type: either makes .venv first, once.
#
#   make book        run the notebooks on the built-in data and build the book; make book SIZE=small: on CamVid
#   make test        linter, tests, stored notebooks, the book, its pages in a browser
#   make notebooks   run the notebooks in place: refreshes the outputs that are committed
#   make lock        resolve requirements.lock anew after a change of pyproject.toml (needs uv)
#   make resolve     ask the package index for the locked versions on the oldest and the newest Python
#   make clean       remove the built book; .venv, runs and records stay
#
# PYTHON=python3.12 picks the interpreter for a new .venv. UV= does without uv though it is installed.

PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
SIZE ?= tiny
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.installed
PAGES := book/_build/html

.NOTPARALLEL:
.PHONY: help book test notebooks lock resolve clean lint check run-notebooks copy-notebooks pages browser
.DEFAULT_GOAL := help

# $(call run,COMMAND): show a command, run it, and say every 9 seconds that it still runs. The clock outlives no recipe:
# it looks for the shell that started it, and holds no pipe open while it sleeps.
define run
@echo '$(1)'
@t=0; while sleep 9 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do echo "  … still running, $$((t += 9)) s"; done & \
	trap "kill $$! 2>/dev/null" EXIT; $(1)
endef

help:
	@sed -n '2,/^$$/s/^#* *//p' Makefile

book: run-notebooks pages
	@echo "The book: $(CURDIR)/$(PAGES)/intro.html"

# The book is checked with the stored outputs: `check` has just found that running the notebooks gives them.
test: lint check copy-notebooks pages browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One thread for each worker: sums in the same order whatever the number of cores.
check: $(READY)
	$(call run,OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval -n $(WORKERS) --dist loadfile)

run-notebooks: $(READY)
	$(call run,$(BIN)/python notebooks/execute.py --to book/notebooks -p size $(SIZE))

copy-notebooks:
	mkdir -p book/notebooks
	cp notebooks/*.ipynb book/notebooks/

# --all: an incremental build is silent about the pages that it does not read again.
pages: $(READY)
	$(call run,$(BIN)/python -m apd records check)
	$(call run,$(BIN)/jupyter-book build -W --keep-going --all --quiet book)

browser: $(READY)
	$(call run,BOOK=$(PAGES) $(BIN)/python -m pytest tests/browser -rs)

notebooks: $(READY)
	$(call run,$(BIN)/python notebooks/execute.py --in-place)

resolve: $(READY)
	$(call run,$(BIN)/python .ci/resolve.py)

# Only what differs from the lock is installed. A .venv whose Python is gone or too old is made anew.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "Python 3.11 or newer is needed and $(PYTHON) is not one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing the versions of requirements.lock into .venv, once: 3 GB to download and 7 GB of disk, most of it"
	@echo "torch for GPUs. With pip it took 2 minutes on a fast network; at 50 Mbit/s the download alone takes 8."
ifneq ($(UV),)
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || $(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(call run,$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock)
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
else
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear .venv || { echo "$(PYTHON) cannot make a virtual environment: install python3-venv, or uv." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(call run,$(BIN)/python -m pip install --require-hashes --requirement requirements.lock)
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
endif
	@touch $(READY)

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --generate-hashes --strip-extras \
	    --no-header --quiet --output-file requirements.lock
	sed -nE 's/^([a-z0-9].*[^ ]) *\\$$/\1/p' requirements.lock > requirements-conda.txt

clean:
	rm -rf book/_build book/notebooks
