# make demo   sets everything up, teaches the embedded model a toy it has never seen, prints where the page is
# make test   sets everything up, checks style and types, runs all tests, two at a time
# make quick  the tests that take less than a few seconds each
# make lint   style and types only
# make clean  removes the environment and what the demo wrote

PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/pip --quiet --quiet --disable-pip-version-check
READY  := $(VENV)/.ready

.PHONY: demo test quick lint clean

demo: $(READY)
	$(VENV)/bin/infusion demo -o demo

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q --numprocesses 2 --dist worksteal

quick: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q --numprocesses 2 --dist worksteal -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) demo

# Made once, and again only when what is to be installed changes. torch comes first and pinned, so that nothing
# installed after it can pull another one.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer, \
	and this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV): Python $$($(PYTHON) -c 'import platform; print(platform.python_version())'), \
	torch, diffusers and tools; once, a few minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch==2.13.0
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@$(PIP) install --constraint constraints.txt --no-deps open_clip_torch
	@touch $@
