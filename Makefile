# make demo: see it work.  make test: run the tests.  Both set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
READY := $(VENV)/.ready
# set in some containers: each of hundreds of processes would then compile each module anew
unexport PYTHONDONTWRITEBYTECODE
# a dot for some lines, so that one sees that it is alive; all lines if it fails
DOTS := '/^SETUP-FAILED$$/ { failed = 1; next } { said = said $$0 "\n" } NR % 5 == 0 { printf "."; fflush() } END { print ""; if (failed) { printf "%s", said; exit 1 } }'

.PHONY: help setup demo demo-retention test test-fast test-unit explore lint types layers bench bench-quick bench-limits check collector matrix lowest lock clean

help:
	@sed -n 's/^# //p' Makefile | head -1
	@echo "Also: setup, demo-retention, test-fast, test-unit, explore, lint, types, layers, bench, bench-quick, bench-limits, collector, matrix, lowest, lock, clean"

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	@echo "Installing packages into $(VENV): one to three minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c $(CONSTRAINTS) pip
	@{ $(BIN)/python -m pip install --progress-bar off --disable-pip-version-check -c $(CONSTRAINTS) --editable '.[archive,dev]' --group dev 2>&1 || echo SETUP-FAILED; } | awk $(DOTS)
	@touch $(READY)

# KEEP=1 leaves it running
demo: setup
	@$(BIN)/python -m demo

# a year of records in a minute: archived, held, erased, and everything still proves
demo-retention: setup
	@$(BIN)/python -m demo.retention

# nearly half of a worker's time is waiting for real servers, so four at once suit two cores; the files
# of slow tests come first (tests/conftest.py): no worker begins one when the others have ended
TEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test: setup
	$(TEST)

test-fast: setup
	$(TEST) -m "not slow"

# one module each, no server
test-unit: setup
	$(TEST) tests/unit

# property tests with other examples each time; what fails here stays in its test as an @example
explore: setup
	$(TEST) -m hypothesis --hypothesis-profile=explore

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# the whole comparison, in less than half an hour; BENCH="--quick" takes a few minutes
bench: setup
	$(BIN)/python -m tests.benchmarks.suite run $(BENCH)

bench-quick: setup
	$(BIN)/python -m pytest tests/benchmarks -p no:cacheprovider -o python_files="bench_*.py" -o python_functions="bench_*" --benchmark-columns=median,iqr,rounds --benchmark-min-rounds=5 --benchmark-max-time=0.3
	$(BIN)/python -m tests.benchmarks.suite limits

# write down how many instructions a request may take, where more are meant
bench-limits: setup
	$(BIN)/python -m tests.benchmarks.suite limits --update

# the OpenTelemetry Collector of collector-config/, for the tests marked so; prints its path
collector:
	@.ci/collector

matrix: setup
	.ci/matrix $(PYTHON)

# the lowest versions that pyproject.toml allows; a few minutes
lowest:
	.ci/lowest $(PYTHON)

lock: setup
	.ci/lock

clean:
	rm -rf $(VENV) .venv-* dist build .pytest_cache .mypy_cache .ruff_cache .demo
