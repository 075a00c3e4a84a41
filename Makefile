# Two commands on a fresh clone do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-exhaustive lint bench client-wheel clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo             the whole way on data it makes itself: record, convert, train 7-D, grow to 8-D, fine-tune, verdict"
	@echo "make test             every kind of test; of the longest sweeps over one kind, the representatives"
	@echo "make test-exhaustive  the rest of those sweeps"
	@echo "make lint             ruff (rules and format) and mypy"
	@echo "make bench            every benchmark in its quick form"
	@echo "make client-wheel     dist/diffusion_policy_client-*.whl, what a robot's computer installs"
	@echo "make setup            the environment in .venv, from constraints.txt"

setup: $(READY)

# The last line installs programs that tests talk to as they are, without their pins (numpy < 2, another OpenCV).
$(READY): pyproject.toml setup.py constraints.txt $(wildcard diffusion_policy/model/cpu/kernels/*.cpp diffusion_policy/model/cpu/kernels/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps openpi-client vlalab
	@touch $@

demo: $(READY)
	$(BIN)/python scripts/demo.py

# Sources are compiled once and not by each of the processes that the tests start.
test test-exhaustive: export PYTHONDONTWRITEBYTECODE =

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-exhaustive: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@set -e; for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark --quick; done

# Without the environment: what it builds needs none of it.
client-wheel:
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist ./client

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
