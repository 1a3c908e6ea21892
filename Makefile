# make demo [SOURCE=folder]   the whole road in miniature, on CPU, into demo/index.html
# make test                   all tests;  make test-fast  without the slow ones
# make lint                   ruff and mypy
# make slurm-up, slurm-down   a Slurm cluster of two nodes on this machine, for trying slurm/*.sh (needs slurm-wlm, munge)
# make install                only the virtual environment
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast lint install clean slurm-up slurm-down
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: error: $(PYTHON) is older than Python 3.11; call make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m miniature.demo $(if $(SOURCE),--source '$(SOURCE)')

# two processes at a time, each file in one of them: its module fixtures are whole training runs
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow'

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
