# Each target does its own set-up: `make demo` and `make test` work as the first command.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

export HF_HUB_OFFLINE = 1

.PHONY: setup lint types test bench parity check demo

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(STAMP)

demo: $(STAMP)  ## real texts through all four doors, offline
	$(BIN)/qwen3-embedding demo

lint: $(STAMP)  ## style, format, who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/basedpyright

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(STAMP)  ## beside sentence-transformers, random weights of the 0.6B shape: half an hour
	$(BIN)/qwen3-embedding bench --against sentence-transformers

parity: $(STAMP)  ## 200 texts against transformers at the 0.6B shape: half an hour
	$(BIN)/python -m benchmarks.parity

check: lint types test
