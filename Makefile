# make setup | demo | test | test-all | faults | docs | lint: each does its own set-up. PYTHON names the interpreter that makes .venv.
# MARKS narrows the long tests, such as MARKS="not browser".
PYTHON ?= python3
BIN := .venv/bin
MARKS ?= long

.PHONY: setup demo test test-all faults docs lint

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/hsk demo

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-all: test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "long and ($(MARKS))"

faults: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/faults --faults benchmarks/results/faults_cpu_$(shell date +%F).md

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
